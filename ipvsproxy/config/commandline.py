"""Arguments into settings, by the grammar of kube-proxy's command line (contract 1.1).

`--name=value` and `--name value`, `_` counting as `-`; a flag that may stand alone takes its value only after a
`=`. Of the proxy's own flags `-v` and `-h` are the only short ones; commands that look at things have more of
them, and flags and arguments of their own (`Grammar`).
"""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from ipvsproxy.config.kinds import BadValue
from ipvsproxy.config.table import BY_FLAG, FLAG_ALIASES, GROUPS, Row, Status

LONGEST_NAME = 50
"""Of an unknown flag, so much is compared with the known ones."""


class WrongUsage(ValueError):
    """Arguments that mean nothing; the text is one line for each mistake."""


class Grammar(NamedTuple):
    """What arguments may be: flags by name, letters for some of them, whether there may be others."""

    flags: Mapping[str, Row] = BY_FLAG
    letters: Mapping[str, str] = {"v": "v"}
    positional: bool = False
    aliases: Mapping[str, Row] = FLAG_ALIASES


RUN = Grammar()
"""The proxy's own."""


class Arguments(NamedTuple):
    """What was given: values by key, whether help is wanted, positional arguments, notes on deprecated names."""

    values: dict[str, Any]
    help: bool
    positional: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse(arguments: Iterable[str], grammar: Grammar = RUN) -> Arguments:
    """Read all arguments. Raises WrongUsage with every mistake."""
    values: dict[str, Any] = {}
    positional: list[str] = []
    mistakes, notes = [], []
    rest = iter(arguments)
    for text in rest:
        if text in ("-h", "--help"):
            return Arguments(values, help=True)
        try:
            if text in ("--", "-") or not text.startswith("-"):
                positional += _positional([text] if text != "--" else rest, grammar)
                continue
            row, value = _flag(text, rest, grammar)
            notes += _deprecation(text, row, grammar)
            known = values.get(row.key)
            join = row.kind.join
            values[row.key] = join(known, value) if join and known is not None else value
        except WrongUsage as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        raise WrongUsage("\n".join(mistakes))
    return Arguments(values, help=False, positional=tuple(positional), notes=tuple(notes))


def _flag(text: str, rest: Iterator[str], grammar: Grammar) -> tuple[Row, Any]:
    """Read one flag, taking its value from the rest where it has none."""
    name, equals, value = _split(text, grammar)
    row = grammar.flags.get(name) or grammar.aliases.get(name)
    if row is None:
        raise WrongUsage(f"unknown flag: {text.partition('=')[0]}{_like(name, grammar)}")
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


def _deprecation(text: str, row: Row, grammar: Grammar) -> list[str]:
    """Return the note about a flag that was given by an earlier name."""
    name = _split(text, grammar)[0]
    return [f"--{name}: deprecated, use --{row.flag}"] if name != row.flag else []


def _split(text: str, grammar: Grammar) -> tuple[str, str, str]:
    """Return the name of a flag, an `=` when a value is attached to it, and that value."""
    if text.startswith("--"):
        name, equals, value = text[2:].partition("=")
        return name.replace("_", "-"), equals, value
    name = grammar.letters.get(text[1:2], "")
    if name:
        return name, "=" if len(text) > 2 else "", text[2:].removeprefix("=")
    name = text[1:].partition("=")[0].replace("_", "-")
    raise WrongUsage(f"unknown flag: {text.partition('=')[0]}{_like(name, grammar)}")


def _like(name: str, grammar: Grammar) -> str:
    """Return the flag that may have been meant, as the end of a sentence."""
    like = get_close_matches(name[:LONGEST_NAME], grammar.flags, 1)
    return f"; did you mean --{like[0]}?" if like else ""


def _positional(texts: Iterable[str], grammar: Grammar) -> list[str]:
    positional = [text for text in texts if text]
    if positional and not grammar.positional:
        raise WrongUsage(f"unexpected positional arguments: {' '.join(positional)}")
    return positional


def usage() -> str:
    """Return the list of all flags of the proxy."""
    lines = []
    for title, settings in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [usage_line(row) for row in settings if row.flag]
    return "\n".join(lines[1:])


def usage_line(row: Row, letter: str = "") -> str:
    """Return the help text of a flag."""
    kind = row.kind
    name = f"-{letter}, --{row.flag}" if letter else f"--{row.flag}"
    name = name if kind.bare else f"{name} {kind.name}"
    default = row.default if row.flag_default is None else row.flag_default
    positional = [row.help] if row.help else []
    if row.status is Status.ACCEPTED:
        positional.append("(accepted, has no effect)")
    elif default != kind.zero:
        positional.append(f"(default {kind.show(default)})")
    positional += [f"(--{alias.flag} is deprecated)" for alias in row.aliases]
    return f"  {name:44} {' '.join(positional)}".rstrip()
