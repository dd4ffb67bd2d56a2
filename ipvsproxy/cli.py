"""The command line: reads what to do, does it, and returns an exit status, or never returns.

Called as `kube-proxy`, or with a flag first, the grammar is kube-proxy's and means `run`; wrong usage is status
1 then, as there (contract 1.1, 1.19). Otherwise the first argument is a command (`commands.command_table`), and
wrong usage is status 2. Status 0: fine, 1: failed, or something was found.
"""

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ipvsproxy.base.errors import plain
from ipvsproxy.base.files import replace
from ipvsproxy.commands.command_table import BY_NAME, COMMANDS, HELP, Command
from ipvsproxy.commands.invocation import CommandFailed, Invocation
from ipvsproxy.config.assemble import config as assembled
from ipvsproxy.config.check import lost_in_file, problems, unknown_gates
from ipvsproxy.config.commandline import Arguments, WrongUsage, parse, usage
from ipvsproxy.config.document import ConfigFileError, text
from ipvsproxy.config.model import KUBERNETES_VERSION
from ipvsproxy.config.settle import Settings, settle
from ipvsproxy.process.log import printable

PRINTED_VERSIONS = ("true", "raw")
NODE_NAME_BLANK = "--hostname-override: the host has no name, and none was given"


def main(arguments: Sequence[str], program: str = "ipvsproxy") -> int:
    """Do what the arguments ask for and return the exit status; `run` only returns when it cannot start."""
    name = Path(program).name
    if name == "kube-proxy" or (arguments and arguments[0].startswith("-")):
        return _command("run", arguments, wrong=1, name=name)
    if not arguments or arguments[0] not in BY_NAME:
        return _wrong(WrongUsage(_no_command(arguments)), 2, "\n".join(["", *_commands("ipvsproxy")]))
    command = BY_NAME[arguments[0]]
    if command is HELP:
        # `help COMMAND` is `COMMAND --help`; without a command, or of help itself, it is the list of all.
        about = [word for word in arguments[1:2] if word != HELP.name]
        return main([*about, "--help"], program)
    if command.run:
        return _look(command, command.run, arguments[1:])
    return _command(command.name, arguments[1:], wrong=2, name=name)


def _no_command(arguments: Sequence[str]) -> str:
    if not arguments:
        return "a command is needed"
    like = get_close_matches(arguments[0], BY_NAME, 1)
    return f"unknown command: {arguments[0]}" + (f"; did you mean {like[0]}?" if like else "")


def _look(command: Command, run: Callable[[Invocation], int], arguments: Sequence[str]) -> int:
    """Carry out a read-only command. Its input and its exceptions are in `commands.invocation`."""
    try:
        parsed = parse(arguments, command.grammar)
        if parsed.help:
            print(command.usage())
            return 0
        from ipvsproxy.process import log

        log.quiet()
        status = run(_given(command, parsed))
    except WrongUsage as error:
        return _wrong(error, 2, _see(f"ipvsproxy {command.name}"))
    except (CommandFailed, ConfigFileError) as error:
        return _errors(str(error).splitlines(), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _command(command: str, arguments: Sequence[str], *, wrong: int, name: str) -> int:
    try:
        parsed = parse(arguments)
    except WrongUsage as error:
        return _wrong(error, wrong, _see(name))
    if parsed.help:
        print(_help(name))
        return 0
    flags = {**parsed.values}
    if command == "version" or flags.get("--version") in PRINTED_VERSIONS:
        print(version(raw=flags.get("--version") == "raw"))
        return 0
    if command == "cleanup":
        flags["--cleanup"] = True
    try:
        settings = settle(flags, os.environ)
    except ConfigFileError as error:
        return _errors(str(error).splitlines(), 1)
    settings.notes += parsed.notes
    found = _problems(settings)
    return _errors(found, wrong) if found else _act(settings, flags)


def _given(command: Command, arguments: Arguments) -> Invocation:
    """Return what a command is called with. Raises WrongUsage, ConfigFileError."""
    values = arguments.values
    settings = settle({key: value for key, value in values.items() if key not in command.keys}, os.environ)
    found = list(problems(settings))
    if found:
        raise WrongUsage("\n".join(found))
    flags = {row.flag: values.get(row.key, row.default) for row in command.own}
    return Invocation(arguments.positional, flags, assembled(settings, socket.gethostname()), settings)


def _problems(settings: Settings) -> list[str]:
    found = list(problems(settings))
    values = settings.values
    needs_name = not (values["--cleanup"] or values["--write-config-to"])
    if not found and needs_name and not (values["hostnameOverride"] or socket.gethostname()).strip():
        found.append(NODE_NAME_BLANK)
    return found


def _act(settings: Settings, flags: Mapping[str, Any]) -> int:
    # Imported late: --help, --version and mistakes need neither pyroute2 nor structlog.
    from ipvsproxy.process import log

    config = assembled(settings, socket.gethostname())
    log.configure(config)
    log.settings(settings.notes, unknown_gates(settings), config)
    target = settings.values["--write-config-to"]
    if target:
        return _write(Path(target), settings)

    from ipvsproxy.process import signals

    signals.end_at_once()
    from ipvsproxy.base.errors import Fatal
    from ipvsproxy.process import app
    from ipvsproxy.process.cleanup import cleanup

    try:
        if settings.values["--cleanup"]:
            cleanup(
                config,
                everything=settings.values["--cleanup-kube-proxy"],
                wait=settings.values["--cleanup-wait"],
                handover=settings.values["--cleanup-handover"],
            )
        elif settings.values["--init-only"]:
            app.init(config)
        else:
            app.run(config, lambda: recheck(flags))
    except Fatal as error:
        return _errors([str(error)], 1)
    return 0


def recheck(flags: Mapping[str, Any]) -> list[str]:
    """Return why the configuration files, as they are now, would keep a new start of this process from running."""
    from ipvsproxy.kernel import host

    try:
        settings = settle(flags, os.environ)
    except ConfigFileError as error:
        return str(error).splitlines()
    return _problems(settings) or host.obstacles(assembled(settings, socket.gethostname()))


def _write(target: Path, settings: Settings) -> int:
    try:
        replace(target, text(settings.values))
    except OSError as error:
        return _errors([f"--write-config-to: {target}: {plain(error)}"], 1)
    print(f"wrote the effective configuration to {target}", file=sys.stderr)
    for difference in lost_in_file(settings):
        print(f"Warning: {target} differs from these settings: {difference}", file=sys.stderr)
    return 0


def _wrong(error: WrongUsage, status: int, help_: str) -> int:
    """Say what is wrong first: a list of all flags would hide it."""
    _errors(str(error).splitlines(), status)
    print(help_, file=sys.stderr)
    return status


def _see(program: str) -> str:
    return f"See '{program} --help'."


def _errors(lines: Sequence[str], status: int) -> int:
    for line in lines:
        print(f"Error: {printable(line)}", file=sys.stderr)
    return status


def _help(name: str) -> str:
    return "\n".join([*_commands(name), "", usage()])


def _commands(name: str) -> list[str]:
    lines = ["Kubernetes Services through IPVS and nftables.", "", f"usage: {name} [flags]"]
    if name == "kube-proxy":
        return lines
    width = max(len(command.name) for command in COMMANDS)
    lines += [f"       {name} COMMAND [flags]", ""]
    return lines + [f"  {command.name:{width}}  {command.help}" for command in COMMANDS]


def version(*, raw: bool = False) -> str:
    """Return name and version; the first token of the form v1.NN.M is the kube-proxy this stands for."""
    from importlib.metadata import version as installed

    if not raw:
        return f"Kubernetes {KUBERNETES_VERSION} (ipvsproxy v{installed('ipvsproxy')})"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f'version.Info{{Major:"{major}", Minor:"{minor}", GitVersion:"{KUBERNETES_VERSION}",'
        f' Program:"ipvsproxy v{installed("ipvsproxy")}", Python:"{python}", Platform:"{os.uname().machine}"}}'
    )
