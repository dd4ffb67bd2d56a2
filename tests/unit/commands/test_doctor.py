"""`doctor` from its words to its exit status, as far as that needs no node."""

import pytest

from ipvsproxy import cli


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["a", "b"], 2, "one Service at most"),
        (["a/b/c"], 2, "one Service at most"),
        (["web", "--facts=facts.json"], 2, "--facts"),
        (["--netns=pod"], 2, "--netns"),
        (["web", "--netns=nosuch"], 1, "--netns: nosuch: no such network namespace"),
        (["--facts=/nosuch"], 1, "No such file"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(words, status, said, capsys):
    assert cli.main(["doctor", *words]) == status
    assert said in capsys.readouterr().err.splitlines()[0]
