"""The example of the library's README does what it says."""

import pathlib
import re

import nft

README = pathlib.Path(nft.__file__).with_name("README.md").read_text()


def test_the_example_runs():
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - it is ours


def test_every_public_name_is_in_the_readme():
    assert set(nft.__all__) - {name for name in nft.__all__ if f"`{name}`" in README} == {"can_read_tables"}
