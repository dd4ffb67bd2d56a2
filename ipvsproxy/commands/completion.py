"""`ipvsproxy completion SHELL`: a script that completes commands, flags and values, from the table of commands."""

import sys
from collections.abc import Iterator

from ipvsproxy.commands.command_table import COMMANDS, EXIT_OK, LETTERS, Command
from ipvsproxy.commands.invocation import Invocation, WrongUsage
from ipvsproxy.config.table import Row

PATHS = frozenset(
    ("config", "kubeconfig", "extra-config", "write-config-to", "manifests", "from", "facts", "logs")
)
"""Flags whose value is a file or folder."""
PROGRAM = "ipvsproxy"


def run(invocation: Invocation) -> int:
    """Print the script."""
    scripts = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if len(invocation.arguments) != 1 or invocation.arguments[0] not in scripts:
        raise WrongUsage(f"one of these shells is needed: {', '.join(scripts)}")
    sys.stdout.write("\n".join(scripts[invocation.arguments[0]]()) + "\n")
    return EXIT_OK


def values(row: Row) -> list[str]:
    """Return what a flag may be set to, as far as that is a short list."""
    return row.kind.name.split("|") if "|" in row.kind.name else []


def names(row: Row) -> list[str]:
    """Return how a flag is written, the long form first."""
    return [f"--{row.flag}"] + ([f"-{LETTERS[row.flag]}"] if row.flag in LETTERS else [])


def _rows() -> list[Row]:
    """Return every flag of every command once, by its name."""
    known = {name: row for command in COMMANDS for name, row in command.flags.items()}
    return [known[name] for name in sorted(known)]


def _flags(command: Command) -> str:
    return " ".join(name for row in command.flags.values() for name in names(row))


def _bash() -> Iterator[str]:
    yield f"# bash completion of {PROGRAM}; load it with: source <({PROGRAM} completion bash)"
    yield f"_{PROGRAM}() {{"
    yield '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words="" flags=""'
    yield '    if [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi'
    yield '    if [[ $cur == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-1]}; cur=""; fi'
    yield "    if [[ $COMP_CWORD -eq 1 ]]; then"
    yield f'        COMPREPLY=($(compgen -W "{" ".join(c.name for c in COMMANDS)}" -- "$cur")); return'
    yield "    fi"
    yield "    case $prev in"
    for row in _rows():
        what = f'-W "{" ".join(values(row))}"' if values(row) else "-f" if row.flag in PATHS else ""
        if what:
            yield f'        {"|".join(names(row))}) COMPREPLY=($(compgen {what} -- "$cur")); return;;'
    yield "    esac"
    yield "    case ${COMP_WORDS[1]} in"
    for command in COMMANDS:
        yield f'        {command.name}) words="{" ".join(command.first)}"; flags="{_flags(command)}";;'
    yield "    esac"
    yield "    if [[ $cur == -* ]]; then words=$flags; fi"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    yield "}"
    yield f"complete -o default -F _{PROGRAM} {PROGRAM}"


def _zsh() -> Iterator[str]:
    yield f"#compdef {PROGRAM}"
    yield f"# zsh completion of {PROGRAM}; load it with: source <({PROGRAM} completion zsh)"
    yield f"_{PROGRAM}() {{"
    yield "    local -a commands flags"
    yield f"    commands=({' '.join(_quoted(f'{c.name}:{c.help}') for c in COMMANDS)})"
    yield "    if (( CURRENT == 2 )); then _describe command commands; return; fi"
    yield "    case ${words[2]} in"
    for command in COMMANDS:
        specs = " ".join(_zsh_flag(row, name) for row in command.flags.values() for name in names(row))
        first = f" {_quoted('1:what:(' + ' '.join(command.first) + ')')}" if command.first else ""
        yield f"        {command.name}) flags=({specs}{first});;"
    yield "    esac"
    yield "    words=(${words[1]} ${words[3,-1]}); (( CURRENT-- ))"
    yield "    _arguments $flags"
    yield "}"
    yield f"compdef _{PROGRAM} {PROGRAM}"


def _zsh_flag(row: Row, name: str) -> str:
    description = row.help.translate(str.maketrans("[]:", "(),"))
    if row.kind.bare:
        return _quoted(f"{name}[{description}]")
    action = f"({' '.join(values(row))})" if values(row) else "_files" if row.flag in PATHS else ""
    return _quoted(f"{name}{'=' if name.startswith('--') else '+'}[{description}]:{row.flag}:{action}")


def _fish() -> Iterator[str]:
    yield f"# fish completion of {PROGRAM}; load it with: {PROGRAM} completion fish | source"
    yield f"complete -c {PROGRAM} -f"
    for command in COMMANDS:
        yield f"complete -c {PROGRAM} -n __fish_use_subcommand -a {command.name} -d {_quoted(command.help)}"
        seen = f"'__fish_seen_subcommand_from {command.name}'"
        if command.first:
            yield f"complete -c {PROGRAM} -n {seen} -a {_quoted(' '.join(command.first))}"
        yield from (f"complete -c {PROGRAM} -n {seen} {_fish_flag(row)}" for row in command.flags.values())


def _fish_flag(row: Row) -> str:
    letter = f" -s {LETTERS[row.flag]}" if row.flag in LETTERS else ""
    about = f" -d {_quoted(row.help)}" if row.help else ""
    if row.kind.bare:
        return f"-l {row.flag}{letter}{about}"
    if values(row):
        return f"-l {row.flag}{letter} -x -a {_quoted(' '.join(values(row)))}{about}"
    return f"-l {row.flag}{letter} {'-r -F' if row.flag in PATHS else '-x'}{about}"


def _quoted(text: str) -> str:
    """Quote for all three shells: none of our words has a backslash in it."""
    return "'" + text.replace("'", "'\\''") + "'"
