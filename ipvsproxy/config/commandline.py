"""Arguments into settings, by the grammar of kube-proxy's command line (contract 1.1).

`--name=value` and `--name value`, `_` counting as `-`; a flag that may stand alone takes its value only after a
`=`; `-v` and `-h` are the only short ones.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ipvsproxy.config.kinds import BadValue
from ipvsproxy.config.table import BY_FLAG, GROUPS, Row, Status


class WrongUsage(ValueError):
    """Arguments that mean nothing; the text is one line for each mistake."""


class Arguments(NamedTuple):
    """What was given: values by key, and whether help was asked for."""

    values: dict[str, Any]
    help: bool


def parse(arguments: Iterable[str]) -> Arguments:
    """Read all arguments. Raises WrongUsage with every mistake."""
    values: dict[str, Any] = {}
    mistakes = []
    rest = iter(arguments)
    for text in rest:
        if text in ("-h", "--help"):
            return Arguments(values, help=True)
        try:
            if text == "--" or not text.startswith("-"):
                _no_positional([text] if text != "--" else rest)
                continue
            row, value = _flag(text, rest)
            known = values.get(row.key)
            join = row.kind.join
            values[row.key] = join(known, value) if join and known is not None else value
        except WrongUsage as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        raise WrongUsage("\n".join(mistakes))
    return Arguments(values, help=False)


def _flag(text: str, rest: Iterator[str]) -> tuple[Row, Any]:
    """Read one flag, taking its value from the rest where it has none."""
    name, equals, value = _split(text)
    row = BY_FLAG.get(name)
    if row is None:
        raise WrongUsage(f"unknown flag: {text.partition('=')[0]}")
    if not equals:
        bare = row.kind.bare
        taken = bare if bare is not None else next(rest, None)
        if taken is None:
            raise WrongUsage(f"flag needs a value: --{name}")
        value = taken
    try:
        return row, row.kind.read(value)
    except BadValue as error:
        raise WrongUsage(f"--{name}: {error}") from None


def _split(text: str) -> tuple[str, str, str]:
    """Return the name of a flag, an `=` when a value is attached to it, and that value."""
    if text.startswith("--"):
        name, equals, value = text[2:].partition("=")
        return name.replace("_", "-"), equals, value
    if text.startswith("-v"):
        return "v", "=" if len(text) > 2 else "", text[2:].removeprefix("=")
    raise WrongUsage(f"unknown flag: {text}")


def _no_positional(texts: Iterable[str]) -> None:
    wrong = [text for text in texts if text]
    if wrong:
        raise WrongUsage(f"arguments without a flag mean nothing here: {' '.join(wrong)}")


def usage() -> str:
    """Return the list of all flags."""
    lines = []
    for title, settings in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [_usage_line(row) for row in settings if row.flag]
    return "\n".join(lines[1:])


def _usage_line(row: Row) -> str:
    kind = row.kind
    name = f"--{row.flag}" if kind.bare else f"--{row.flag} {kind.name}"
    default = row.default if row.flag_default is None else row.flag_default
    words = [row.help] if row.help else []
    if row.status is Status.ACCEPTED:
        words.append("(accepted, has no effect)")
    elif default != kind.zero:
        words.append(f"(default {kind.show(default)})")
    return f"  {name:44} {' '.join(words)}".rstrip()
