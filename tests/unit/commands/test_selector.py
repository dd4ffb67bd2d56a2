import pytest

from ipvsproxy.commands.invocation import WrongUsage
from ipvsproxy.commands.selector import selector

LABELS = {"app": "web", "tier": "front", "team": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web", True),
        ("app=db", False),
        ("app!=db", True),
        ("nothing!=db", True),
        ("nothing=db", False),
        ("app=web,tier=back", False),
        ("app=web,tier=front", True),
        ("app in (web, db),tier", True),
        ("app in (db)", False),
        ("app notin (db)", True),
        ("nothing notin (db)", True),
        ("nothing in (db)", False),
        ("team", True),
        ("!team", False),
        ("! nothing", True),
        ("team=", True),
    ],
)
def test_rules(text, selected):
    assert selector(text)(LABELS) is selected


@pytest.mark.parametrize("text", ["a=b=c", "a in b", "in (a)b", "=", "a!b"])
def test_nonsense(text):
    with pytest.raises(WrongUsage):
        selector(text)
