"""Render a Helm chart as `helm template` would, for the few forms that our templates use.

Known are: `.Values.a.b`, `.Release.Namespace`, `.Chart.AppVersion`, a text in quotes; `if`, `if not`, `end`; the
functions toYaml, nindent, default and required, in pipes; and `{{-` / `-}}`. Anything else is an error, so a
template cannot use what no test has seen. Where the helm program is present, a test compares the two.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

import yaml

ACTION = re.compile(r"(\s*)\{\{(-?)\s*(.*?)\s*(-?)\}\}(\s*)", re.DOTALL)
WORD = re.compile(r'"[^"]*"|\S+')


class Failed(Exception):
    """The template cannot be rendered."""


def render(folder: pathlib.Path, values: dict[str, Any], namespace: str = "kube-system") -> list[dict[str, Any]]:
    """Return the objects that a release of the chart consists of."""
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    world = {
        "Values": merged(yaml.safe_load((folder / "values.yaml").read_text()), values),
        "Release": {"Namespace": namespace},
        "Chart": {"AppVersion": chart["appVersion"]},
    }
    texts = (fill(path.read_text(), world) for path in sorted((folder / "templates").glob("*.yaml")))
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay values over the chart's own: mappings key by key, everything else whole."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def fill(text: str, world: dict[str, Any]) -> str:
    """Carry out the actions of one template. Raises Failed."""
    out: list[str] = []
    shown = [True]
    position = 0
    for found in ACTION.finditer(text):
        before, trim, action, trim_after, after = found.groups()
        piece = text[position : found.start()] + ("" if trim else before)
        position = found.end() if trim_after else found.end() - len(after)
        out.append(piece if shown[-1] else "")
        out.append(_act(action, world, shown))
    if len(shown) != 1:
        raise Failed("an if without its end")
    return "".join(out) + text[position:]


def _act(action: str, world: dict[str, Any], shown: list[bool]) -> str:
    if action == "end":
        shown.pop()
        return ""
    if action.startswith("if "):
        negated = action.startswith("if not ")
        truth = bool(_value(action.removeprefix("if not " if negated else "if "), world))
        shown.append(shown[-1] and truth != negated)
        return ""
    return _printed(_pipe(action, world)) if shown[-1] else ""


def _pipe(action: str, world: dict[str, Any]) -> Any:
    value: Any = None
    for number, stage in enumerate(action.split(" | ")):
        words = WORD.findall(stage)
        piped = [value] if number else []
        value = _call(words[0], [_value(word, world) for word in words[1:]] + piped, world)
    return value


def _call(name: str, arguments: list[Any], world: dict[str, Any]) -> Any:
    match name, arguments:
        case "toYaml", [value]:
            return yaml.safe_dump(value).removesuffix("\n").removesuffix("\n...")
        case "nindent", [number, str(text)]:
            return "\n" + "\n".join(" " * number + line for line in text.split("\n"))
        case "default", [fallback, value]:
            return value or fallback
        case "required", [message, value]:
            if value in (None, ""):
                raise Failed(message)
            return value
        case _, []:
            return _value(name, world)
    raise Failed(f"not known: {name} with {len(arguments)} arguments")


def _value(word: str, world: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return word[1:-1]
    if word.isdigit():
        return int(word)
    if not word.startswith("."):
        raise Failed(f"not known: {word}")
    found: Any = world
    for name in word[1:].split("."):
        if name not in found:
            raise Failed(f"no such value: {word}")
        found = found[name]
    return found


def _printed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
