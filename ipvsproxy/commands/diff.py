"""`ipvsproxy diff`: what a run would change on this node, without changing it. Status 1 if it would.

The wanted state is planned from the objects as `run` does, the kernel is read as `run` does it at its start, and
`plan.diff` compares: there is no second opinion. Draining endpoints are no difference.
"""

from collections.abc import Iterator
from typing import Any

from ipvsproxy.base.names import VIP_LINK
from ipvsproxy.commands import drift, objects
from ipvsproxy.commands.command_table import EXIT_FINDINGS, EXIT_OK
from ipvsproxy.commands.invocation import Invocation, WrongUsage, unreadable
from ipvsproxy.commands.output import Grid, Line, Marked, OutputParts, Style, emit, note
from ipvsproxy.commands.running import adopted
from ipvsproxy.config import Config
from ipvsproxy.inspect.difference import Action, Change
from ipvsproxy.kernel import host
from ipvsproxy.kernel.filters.kube_proxy import removed_by_a_run
from ipvsproxy.kernel.filters.xtables import legacy_leftovers
from ipvsproxy.kernel.instance_lock import InstanceLock
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.kernel.read.survey import read_processes
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.process.other_proxy import signs
from ipvsproxy.reconciler.wanted_state import WantedState

SIGNS = {
    Action.ADD: Marked("+", Style.GOOD),
    Action.CHANGE: Marked("~", Style.WARNING),
    Action.REMOVE: Marked("-", Style.BAD),
}


def run(invocation: Invocation) -> int:
    """Compare once."""
    if invocation.arguments:
        raise WrongUsage("diff takes no arguments")
    invocation = adopted(invocation)
    config = invocation.config
    note(f"settings: {invocation.origin}")
    found = objects.read(config)
    try:
        with KernelReader() as view:
            if not view.has_ipvs:
                note(objects.NO_IPVS)
            wanted = objects.desired_here(config, found, view)
            changed = [*surroundings(config, view), *_differences(config, wanted, view), *_of_kube_proxy(config)]
    except (KernelError, OSError) as error:
        raise unreadable(error) from error
    services = {str(key): wanted.owner(key) for key in wanted.frontends}
    document = {
        "settings": invocation.origin,
        "changes": [_document(change, services.get(change.frontend, "")) for change in changed],
    }
    emit(invocation.flags["output"], "Diff", document, _parts(changed, services))
    return EXIT_FINDINGS if changed else EXIT_OK


def _differences(config: Config, wanted: WantedState, view: KernelReader) -> list[Change]:
    """Return what differs; beside a proxy that runs, what still does when it is looked at again."""
    found = drift.differences(config, wanted, drift.state(view))
    return drift.confirmed(config, found) if InstanceLock().look() else found


def surroundings(config: Config, view: KernelReader) -> Iterator[Change]:
    """Yield what else a start would make: kernel settings, kube-ipvs0, the table."""
    for name, value in host.wanted_sysctls(config):
        was = host.read_sysctl(name)
        if was != value:
            before = "" if was is None else str(was)  # None: the kernel does not have it yet
            yield Change(Action.CHANGE, "setting", host.dotted(name), "", before, str(value))
    if not view.has_link():
        yield Change(Action.ADD, "link", VIP_LINK)
    if not view.has_table():
        yield Change(Action.ADD, "table", str(TABLE))


def _of_kube_proxy(config: Config) -> Iterator[Change]:
    """Yield what a start would remove of a kube-proxy, and report what it could not, or not for long."""
    found = removed_by_a_run()
    for item in found:
        yield Change(
            Action.REMOVE, item.kind, item.name, "", f"{item.number} of kube-proxy" if item.number > 1 else ""
        )
    for program in legacy_leftovers():
        note(f"there are rules of kube-proxy in {program}, which a run cannot remove: ipvsproxy doctor")
    if found and (running := signs(config, read_processes(), ours_runs=InstanceLock().look() is not None).signs):
        note(f"a kube-proxy runs on this node and would write its rules again: {'; '.join(running)}")


def _document(change: Change, service: str) -> dict[str, Any]:
    return {**change._asdict(), "action": change.action.value, "service": service}


def _parts(found: list[Change], services: dict[str, str]) -> OutputParts:
    if not found:
        yield Marked("A run would change nothing.", Style.GOOD)
        return
    heads = ("", "OBJECT", "NAME", "OF", "SERVICE", "WAS", "WANTED")
    yield Grid(heads, [_row(change, services) for change in found], spare=("OF", "SERVICE"))
    yield ""
    yield _summary(found)


def _row(change: Change, services: dict[str, str]) -> list[str | Marked]:
    of = change.frontend if change.frontend != change.name else ""
    cells = (change.object, change.name, of, services.get(change.frontend, ""), change.was, change.wanted)
    return [SIGNS[change.action], *(cell or "-" for cell in cells)]


def _summary(found: list[Change]) -> Line:
    counts = [f"{sum(change.action is action for change in found)} to {action}" for action in Action]
    plural = "s" if len(found) > 1 else ""
    return f"A run would make {len(found)} change{plural}: {', '.join(counts)}."
