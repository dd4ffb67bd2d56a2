"""Label selectors as kubectl has them: app=web,tier!=db,env in (a, b),!old,team."""

import re
from collections.abc import Callable, Mapping

from ipvsproxy.commands.invocation import WrongUsage

Labels = Mapping[str, str]
COMMA = re.compile(r",(?![^()]*\))")
SET = re.compile(r"(\S+)\s+(in|notin)\s+\(([^()]*)\)")
EQUAL = re.compile(r"([^\s=!]+)\s*(==|=|!=)\s*([^\s=!]*)")
NAME = re.compile(r"(!?)\s*([^\s=!()]+)")


def selector(text: str) -> Callable[[Labels], bool]:
    """Return what tells whether labels are selected. Raises WrongUsage."""
    rules = [_rule(part.strip()) for part in COMMA.split(text) if part.strip()]
    return lambda labels: all(rule(labels) for rule in rules)


def _rule(text: str) -> Callable[[Labels], bool]:
    if found := SET.fullmatch(text):
        name, verb, listed = found.groups()
        values = {value.strip() for value in listed.split(",")}
        return lambda labels: (name in labels and labels[name] in values) is (verb == "in")
    if found := EQUAL.fullmatch(text):
        name, sign, value = found.groups()
        # As in Kubernetes: a label that is missing is not equal to anything.
        return lambda labels: (labels.get(name) == value) is (sign != "!=")
    if found := NAME.fullmatch(text):
        negated, name = found.groups()
        return lambda labels: (name in labels) is not bool(negated)
    raise WrongUsage(f"--selector: {text!r} is not a rule such as app=web, app!=web, app in (a,b), app, !app")
