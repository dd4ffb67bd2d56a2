"""Run scenarios: build each group's network, start its proxy, lead it through the scenarios, collect verdicts."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tests.conformance import explain, judge, kernel_state, state_blocks
from tests.conformance.client import HTTP_REQUEST, TimedQuestion, ask_all
from tests.conformance.listeners import listen
from tests.conformance.network import Network, Prefix
from tests.conformance.places import ScenarioGroup, group, places, split
from tests.conformance.proxy import FlowProxy, Stuck, Zygote
from tests.conformance.scenario_file import Flow, Scenario
from tests.lab import netns
from tests.lab.capabilities import missing
from tests.lab.probe import QUESTION, ProbeQuestion, Result
from tests.lab.responder import Responder
from tests.lab.wipe import wipe_node

SPREADLESS = ("sh", "dh", "lblc", "lblcr", "fo", "ovf")


@dataclasses.dataclass
class ScenarioReport:
    """What came of it, as lines for people and as counts."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    facts: int = 0
    explained: int = 0
    unjudged: int = 0
    lines: list[str] = dataclasses.field(default_factory=list)
    say: Callable[[str], None] = print

    def fail(self, scenario: Scenario, what: str, expected: object, seen: object) -> None:
        self.failed += 1
        self._note(f"FAIL {scenario.id} {what}: expected {expected}, seen {seen}")

    def skip(self, scenario: Scenario, flow: Flow, reason: str) -> None:
        self.skipped += 1
        self._note(f"SKIP {scenario.id} {flow.id} {flow.name}: {reason}")

    def _note(self, line: str) -> None:
        self.lines.append(line)
        self.say(line)

    def summary(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


@dataclasses.dataclass
class ScenarioStage:
    """A network, the proxy in it, and the scenario that is played."""

    network: Network
    proxy: FlowProxy | None
    scenario: Scenario


@dataclasses.dataclass(frozen=True)
class Plant:
    """An error on purpose, to see whether the runner finds it.

    `given` changes the scenario that the proxy gets, not the one that is judged; `spoil` changes the node's
    kernel when everything is programmed and the proxy is gone.
    """

    given: Callable[[Scenario], Scenario] | None = None
    spoil: Callable[[str], None] | None = None


class Runner:
    """Runs groups one after the other; the zygote and the responder serve them all."""

    def __init__(
        self, report: ScenarioReport, *, verbose: bool = False, plants: Mapping[str, Plant] | None = None
    ) -> None:
        self._report, self._verbose, self._plants = report, verbose, plants or {}
        self._responder = Responder()
        self._folders = itertools.count(1)

    def run(self, scenarios: Sequence[Scenario]) -> None:
        _raise_file_limit()
        prefix = Prefix.apart_from({text for scenario in scenarios for text in scenario.addresses()})
        groups = group(part for scenario in scenarios for part in split(scenario))
        self._responder.start()
        try:
            with Zygote() as zygote, tempfile.TemporaryDirectory() as folder:
                start = functools.partial(self._start, zygote, prefix, pathlib.Path(folder))
                for one in groups:
                    self._run_group(one, prefix, start)
        finally:
            self._responder.stop()

    def _start(self, zygote: Zygote, prefix: Prefix, folder: pathlib.Path, stage: ScenarioStage) -> FlowProxy:
        """Make a proxy for a scenario on a clean node; it starts with its first manifests."""
        where = stage.network.node
        wipe_node(where)
        if stage.scenario.host_rules:
            netns.run(where, ["nft", "-f", "-"], stage.scenario.host_rules)
        return FlowProxy(zygote, where, stage.scenario, prefix, folder / str(next(self._folders)))

    def _run_group(self, one: ScenarioGroup, prefix: Prefix, start: Callable[[ScenarioStage], FlowProxy]) -> None:
        began = time.monotonic()
        waiting = list(self._possible(one.scenarios))
        try:
            with Network(one.scenarios[0], one.needs, prefix) as network:
                self._tell(f"network of {len(waiting)} scenarios built", began)
                self._play(ScenarioStage(network, None, one.scenarios[0]), waiting, prefix, start)
        except RuntimeError as error:
            self._report.say(f"# {one.scenarios[0].id}: {error}")
            for scenario in waiting:
                self._give_up(scenario, "the network of this scenario cannot be built")

    def _play(
        self,
        stage: ScenarioStage,
        waiting: list[Scenario],
        prefix: Prefix,
        start: Callable[[ScenarioStage], FlowProxy],
    ) -> None:
        """Lead the proxy, and where the flags change its successor, through the scenarios."""
        try:
            while waiting:
                stage.scenario = waiting[0]
                if stage.proxy is None or not stage.proxy.serves(stage.scenario):
                    self._end(stage)
                    stage.proxy = start(stage)
                self._run_scenario(stage, prefix)
                waiting.pop(0)
        finally:
            self._end(stage)

    def _give_up(self, scenario: Scenario, reason: str) -> None:
        for flow in scenario.flows:
            self._report.fail(scenario, f"{flow.id} {flow.name}", judge.expected(flow), reason)

    def _end(self, stage: ScenarioStage) -> None:
        if stage.proxy is not None:
            stage.proxy.kill()
            stage.proxy = None

    def _possible(self, scenarios: Iterable[Scenario]) -> Iterator[Scenario]:
        """Leave out the flows that this kernel cannot do, with a reason."""
        for scenario in scenarios:
            reasons = {flow.id: _why_impossible(flow, scenario) for flow in scenario.flows}
            for flow in scenario.flows:
                if reasons[flow.id]:
                    self._report.skip(scenario, flow, reasons[flow.id])
            rest = scenario.with_flows(flow for flow in scenario.flows if not reasons[flow.id])
            if rest.flows or rest.state:
                yield rest

    def _run_scenario(self, stage: ScenarioStage, prefix: Prefix) -> None:
        began = time.monotonic()
        scenario = stage.scenario
        plant = self._plants.get(scenario.id, Plant())
        try:
            stage.network.enter(scenario)
            stage.proxy.enter(plant.given(scenario) if plant.given else scenario)
        except Stuck as error:
            self._report.say(f"# {scenario.id}: {error}")
            self._give_up(scenario, "no working proxy")
            self._end(stage)
            return
        self._tell(f"{scenario.id} set up", began)
        if plant.spoil:
            # It would repair what is spoilt.
            stage.proxy.kill()
            plant.spoil(stage.network.node)
        kernel_state.flush_conntrack(stage.network.node)
        listen(self._responder, stage.network, scenario, sctp=not missing("sctp"))
        self._judge(stage)
        self._responder.clear()
        self._check_state(stage, prefix)
        self._tell(f"{scenario.id} done", began)

    def _judge(self, stage: ScenarioStage) -> None:
        scenario = stage.scenario
        facts = facts_of(stage)
        results: dict[str, list[Result]] = {flow.id: [] for flow in scenario.flows}
        asking = list(scenario.flows)
        for _ in range(judge.ROUNDS):
            _ask(stage, asking, results)
            asking = [flow for flow in asking if judge.lacks_endpoints(flow, results[flow.id], facts)]
            if not asking:
                break
        for flow in scenario.flows:
            if judge.is_right(flow, results[flow.id], facts):
                self._report.passed += 1
            else:
                what = f"{flow.id} {flow.name}"
                self._report.fail(scenario, what, judge.expected(flow), judge.seen(results[flow.id]))
        self._compare_with_explain(stage, results, facts)

    def _compare_with_explain(
        self, stage: ScenarioStage, results: dict[str, list[Result]], facts: judge.NetworkFacts
    ) -> None:
        flows = stage.scenario.flows
        self._report.explained += len(flows)
        for flow, said, seen in explain.differences(stage.network.node, results, flows, facts):
            self._report.fail(stage.scenario, f"explain {flow.id} {flow.name}", said, seen)

    def _check_state(self, stage: ScenarioStage, prefix: Prefix) -> None:
        # They tell of kube-proxy's ipvs mode.
        if not stage.scenario.state or stage.scenario.config.get("dataPath") == "auto":
            return
        kernel = state_blocks.KernelBlocks(stage.network, stage.scenario, prefix.six)
        findings, judged, unjudged = state_blocks.check(kernel)
        self._report.facts += judged
        self._report.unjudged += unjudged
        for name, expected, seen in findings:
            self._report.fail(stage.scenario, f"state {name}", expected, seen)

    def _tell(self, what: str, began: float) -> None:
        if self._verbose:
            self._report.say(f"# {what} after {time.monotonic() - began:.1f} s")


def facts_of(stage: ScenarioStage) -> judge.NetworkFacts:
    spreads = stage.scenario.config.get("scheduler") not in SPREADLESS
    return judge.NetworkFacts(stage.network.node_addresses, stage.scenario.health_ports, spreads)


def _ask(stage: ScenarioStage, flows: Sequence[Flow], results: dict[str, list[Result]]) -> None:
    where = places(stage.scenario)
    order = [flow for flow in flows for _ in range(judge.attempts(flow))]
    asks = [_ask_for(flow, question(flow, where, stage.network), stage.scenario) for flow in order]
    for flow, result in zip(order, ask_all(asks), strict=True):
        results[flow.id].append(result)


def _ask_for(flow: Flow, what: ProbeQuestion, scenario: Scenario) -> TimedQuestion:
    line = HTTP_REQUEST if flow.port in scenario.health_ports else QUESTION
    return TimedQuestion(what, judge.patience(flow), line)


def question(flow: Flow, where: dict[str, str], network: Network) -> ProbeQuestion:
    """Say who asks: processes of the node leave their source to the kernel, all others are bound to it."""
    if flow.sender == "node":
        return ProbeQuestion(network.node, flow.address, flow.port, flow.proto)
    if flow.sender == "localhost":
        return ProbeQuestion(network.node, flow.address, flow.port, flow.proto, flow.source)
    asker = network.namespace(where[flow.source], flow.source)
    return ProbeQuestion(asker, flow.address, flow.port, flow.proto, flow.source)


def _why_impossible(flow: Flow, scenario: Scenario) -> str:
    if flow.proto == "sctp" and missing("sctp"):
        return missing("sctp")
    scheduler = scenario.config.get("scheduler") or "rr"
    return _why_no_scheduler(scheduler)


@functools.cache
def _why_no_scheduler(name: str) -> str:
    """Load the scheduler, or find it in the kernel. In a micro-VM modules are only under the first program's root.

    Leaving it to the kernel, at the first use, can lock up all namespaces: it then loads the module with IPVS's
    lock held, and a module with state for each namespace (lblc) waits for namespaces that are being removed,
    which wait for that lock.
    """
    tries = [["modprobe", "-q", f"ip_vs_{name}"], ["modprobe", "-q", "-d", "/proc/1/root", f"ip_vs_{name}"]]
    if any(subprocess.run(argv, check=False, capture_output=True).returncode == 0 for argv in tries):
        return ""
    if f" ip_vs_{name}_schedule\n" in pathlib.Path("/proc/kallsyms").read_text():
        return ""
    return f"the kernel has no IPVS scheduler {name}"


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
