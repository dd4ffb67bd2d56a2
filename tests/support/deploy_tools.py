"""Helm and promtool for tests of deploy/, from where tools/bootstrap puts them.

Without them such a test is skipped, with what to do; with IPVSPROXY_REQUIRE=1 it fails.
"""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.api_object import ApiObject

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/ipvsproxy"
PROMTOOL = ROOT / ".cache/promtool"


class StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses a mapping with the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{twice} twice in the mapping at line {node.start_mark.line + 1}"
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[ApiObject]:
    """Return the YAML documents of a text; a key given twice is an error."""
    return [found for found in yaml.load_all(text, StrictLoader) if found]


def render(values: ApiObject, namespace: str = "kube-system") -> list[ApiObject]:
    """Return all objects that Helm makes of the chart, hooks and tests too. Raises helm_python.HelmError."""
    texts = _rendered(values, namespace)
    return [item for name, text in texts.items() if not name.endswith(".txt") for item in documents(text)]


def notes(values: ApiObject, namespace: str = "kube-system") -> str:
    """Return what Helm says after the chart was installed. Raises helm_python.HelmError."""
    return _rendered(values, namespace)["ipvsproxy/templates/NOTES.txt"]


def _rendered(values: ApiObject, namespace: str) -> dict[str, str]:
    with helm().Chart.load(CHART) as chart:
        return chart.render(values, name="ipvsproxy", namespace=namespace)


def is_hook(item: ApiObject) -> bool:
    """Whether Helm keeps the object for an occasion of its own, instead of installing it."""
    return "helm.sh/hook" in item["metadata"].get("annotations", {})


@functools.cache
def _helm() -> Any:
    try:
        import helm_python
    except (ImportError, OSError):
        return None
    return helm_python


def helm() -> Any:
    """Return the module of Helm's library, or end the test."""
    return _helm() or _missing("Helm's library is not installed: .venv/bin/pip install '.[helm]'")


def promtool(*arguments: str | pathlib.Path) -> str:
    """Run promtool and return what it printed; that it complained fails the test."""
    program = PROMTOOL if PROMTOOL.exists() else shutil.which("promtool")
    program = program or _missing("promtool is not installed: tools/promtool")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _missing(reason: str) -> Any:
    if os.environ.get("IPVSPROXY_REQUIRE") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
