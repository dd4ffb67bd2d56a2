"""Each command as one row: arguments, flags and its code. Settings have theirs in `config.table`.

Reading arguments, `--help`, shell completion and docs/commands.md follow from these rows. A command without `run`
belongs to the command line itself. Each `run` imports what it needs when it is called, since the proxy, which
loads this table, needs none of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ipvsproxy.commands.invocation import Invocation
from ipvsproxy.config.annotation_values import GUE, IPIP
from ipvsproxy.config.commandline import RUN, Grammar, usage_line
from ipvsproxy.config.kinds import BOOL, DURATION, LIST, NANOSECONDS, STRING, UINT, ValueKind, choice
from ipvsproxy.config.table import BY_FLAG, FLAG_ALIASES, NEW, Row

EXIT_OK, EXIT_FINDINGS, EXIT_USAGE = 0, 1, 2
"""Exit statuses: no findings; something found, refused or failed; wrong usage."""


def flag(name: str, kind: ValueKind, text: str, default: Any = None) -> Row:
    """Return a row for a flag that only some commands have; `text` is its help."""
    return Row(name, "", kind, kind.zero if default is None else default, NEW, text)


OUTPUT = flag(
    "output",
    choice("table", "wide", "json", "yaml"),
    "output format; wide has all columns; json: docs/commands.md",
    "table",
)
NAMESPACE = flag("namespace", STRING, "only Services of this namespace")
ALL_NAMESPACES = flag("all-namespaces", BOOL, "Services of all namespaces, the default without --namespace")
SELECTOR = flag("selector", STRING, "only Services with these labels, as in kubectl: app=web,tier!=db")
SORT = flag("sort-by", STRING, "column to sort by; -COLUMN: descending")
WATCH = flag("watch", BOOL, "refresh until interrupted")
INTERVAL = flag("interval", DURATION, "with --watch: time between refreshes", 2 * NANOSECONDS)
LIMIT = flag("limit", UINT, "maximum number of connections to read", 1000)
FROM = flag("from", LIST, "files, directories, or - for standard input, as kubectl get -o yaml|json prints them")
LINK = flag("link", STRING, "link on which the packet arrives; default: the one that leads to FROM")

CLUSTER_DOMAIN = flag("cluster-domain", STRING, "the domain of the cluster's DNS", "cluster.local")
NETNS = flag("netns", STRING, "with SERVICE: test from this network namespace too: a path, a name or a process")
LOGS = flag("logs", STRING, "log file of the proxy; default: the logs of its container")
FACTS = flag("facts", STRING, "diagnose this file of a support bundle (facts.json) instead of the node")

VIPS = flag("vips", LIST, "external and load balancer addresses of the Service")
TUNNEL = flag("tunnel", choice(IPIP, GUE), "what ipvsproxy.io/forwarding of the Service has", IPIP)
ADDRESSES = flag("addresses", LIST, "the pod's addresses; default: the first of each family that its links have")

LETTERS = {"output": "o", "namespace": "n", "all-namespaces": "A", "selector": "l", "watch": "w", "v": "v"}


class Command(NamedTuple):
    """One command. `arguments` is how they are shown in help, `first` what the first of them may be.

    `run` carries it out and returns the exit status. Raises WrongUsage, CommandFailed, ConfigFileError.

    Most commands take the `settings` of the proxy as well, since what they look at depends on them.
    """

    name: str
    help: str
    run: Callable[[Invocation], int] | None = None
    arguments: str = ""
    first: tuple[str, ...] = ()
    own: tuple[Row, ...] = ()
    settings: bool = True

    @property
    def flags(self) -> Mapping[str, Row]:
        """Its own flags, then those of the proxy."""
        return {row.flag: row for row in self.own} | (BY_FLAG if self.settings else {})

    @property
    def keys(self) -> frozenset[str]:
        """The keys of its own flags."""
        return frozenset(row.key for row in self.own)

    @property
    def grammar(self) -> Grammar:
        """How its arguments are read."""
        flags = self.flags
        letters = {letter: name for name, letter in LETTERS.items() if name in flags}
        aliases = FLAG_ALIASES if self.settings else {}
        return Grammar(flags, letters, bool(self.arguments), aliases) if self.run else RUN

    def usage(self) -> str:
        """Return its own help."""
        lines = [
            f"{self.help[0].upper()}{self.help[1:]}.",
            "",
            f"usage: ipvsproxy {self.name} {self.arguments}".rstrip(),
        ]
        lines[-1] += " [flags]"
        lines += ["", *(usage_line(row, LETTERS.get(row.flag, "")) for row in self.own)]
        return "\n".join(
            [*lines, *(["", "and the flags of the proxy: ipvsproxy --help"] if self.settings else [])]
        )


def _explain(given: Invocation) -> int:
    from ipvsproxy.commands import explain

    return explain.run(given)


def _show(given: Invocation) -> int:
    from ipvsproxy.commands import show

    return show.run(given)


def _diff(given: Invocation) -> int:
    from ipvsproxy.commands import diff

    return diff.run(given)


def _plan(given: Invocation) -> int:
    from ipvsproxy.commands import plan

    return plan.run(given)


def _doctor(given: Invocation) -> int:
    from ipvsproxy.commands import doctor

    return doctor.run(given)


def _support_bundle(given: Invocation) -> int:
    from ipvsproxy.commands import bundle

    return bundle.run(given)


def _dsr_endpoint(given: Invocation) -> int:
    from ipvsproxy.commands import dsr_endpoint

    return dsr_endpoint.run(given)


def _completion(given: Invocation) -> int:
    from ipvsproxy.commands import completion

    return completion.run(given)


_WORKING = (
    Command("run", "program this node and keep its state correct"),
    Command("cleanup", "remove everything of ipvsproxy and kube-proxy from the kernel, as --cleanup does"),
    Command("version", "print the version, as --version does"),
    Command("explain", "show what happens to a packet on this node, and why", _explain, "[FROM] TO:PORT[/PROTO]",
        ("node",), (OUTPUT, LINK)),
    Command("show", "show the kernel's state by the names of Services", _show,
        "services|endpoints|connections|rules [NAME...]", ("services", "endpoints", "connections", "rules"),
        (OUTPUT, NAMESPACE, ALL_NAMESPACES, SELECTOR, SORT, WATCH, INTERVAL, LIMIT)),
    Command("diff", "show what a run would change on this node", _diff, own=(OUTPUT,)),
    Command("plan", "show what a node should have by saved objects; needs no cluster and no root", _plan,
        own=(FROM, OUTPUT)),

    Command("doctor", "find out what is wrong with this node or one Service", _doctor, "[NAMESPACE/SERVICE]",
        own=(OUTPUT, CLUSTER_DOMAIN, NETNS, FACTS)),
    Command("support-bundle", "collect what is needed for remote diagnosis, without secrets",
        _support_bundle, "[FILE|-]", own=(CLUSTER_DOMAIN, LOGS)),
    Command("dsr-endpoint", "prepare the pod that this runs in for direct server return", _dsr_endpoint,
        own=(VIPS, TUNNEL, ADDRESSES), settings=False),
    Command("completion", "print a script that completes commands and flags", _completion, "bash|zsh|fish",
        ("bash", "zsh", "fish"), settings=False),
)  # fmt: skip
HELP = Command("help", "print this, or the flags of a command, as --help does", arguments="[COMMAND]",
    first=tuple(command.name for command in _WORKING), settings=False)  # fmt: skip
COMMANDS = (*_WORKING, HELP)
BY_NAME = {command.name: command for command in COMMANDS}
