"""Packet-flow conformance: every flow of a file, with real packets through a real ipvsproxy.

    make conformance [FLOWS=FILE] [ARGS="--scenario ID"]

A file of flows (tests/conformance/flows.json describes its own format) says for many scenarios who sends from
which address to which, and what must come of it. Each scenario is built in network namespaces with the very
addresses of the file, ipvsproxy runs on its node with the scenario's objects and flags, and each flow is tried
with real connections. Output: a line for each failing flow (scenario, flow, expected, seen) and as
the last line the counts; the exit code is 0 only when nothing failed. What counts as right is written down in
judge.py, and in state_blocks.py for the `state` blocks, whose differences count as failures while what
agrees is not counted as a flow. A flow is skipped only when the kernel cannot do it, for a reason that is printed.

Modules: scenario_file (reading), objects (manifests and flags), places (what can share a network), network
(namespaces), proxy (the process), listeners, client, judge, state_blocks, runner.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from tests.conformance import scenario_file
from tests.conformance.runner import Runner, ScenarioReport
from tests.conformance.scenario_file import Scenario

FLOWS = pathlib.Path(__file__).with_name("flows.json")
# Each rule at least once, with few different configurations: a process start is what costs.
SUBSETS = {
    "rules": (
        "no-endpoints-reject",
        "clusterip-general",
        "loadbalancer-source-ranges",
        "nodeports-v4-primary",
        "external-traffic-policy-local",
        "itp-local-none",
        "term-cluster-ready",
        "masquerade-base",
        "ipmode-proxy",
        "topology-26",
        "ipvs-session-affinity-flows",
        "ipvs-nodeport-v6-sctp-multi",
        "trace-v6",
        "detect-local-bridge",
        "ignored-service-kinds",
    ),
}


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    try:
        scenarios = choose(scenario_file.load(options.flows), options)
    except (scenario_file.Unusable, OSError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    report = ScenarioReport()
    Runner(report, verbose=options.verbose).run([scenario.on(options.data_path) for scenario in scenarios])
    print(f"state blocks: {report.facts} facts judged, {report.unjudged} not (metrics, kube-proxy's own sets)")
    print(f"explain: asked about {report.explained} flows")
    print(report.summary(), flush=True)
    return 1 if report.failed else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flows", type=pathlib.Path, default=FLOWS, metavar="FILE")
    parser.add_argument("--scenario", action="append", default=[], metavar="ID", help="only this one; repeatable")
    parser.add_argument("--subset", choices=sorted(SUBSETS), help="only the scenarios of this list")
    parser.add_argument(
        "--data-path", choices=("ipvs", "auto"), default="ipvs", help="of the proxy; with auto no state is judged"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="tell what takes how long")
    return parser.parse_args(argv)


def choose(scenarios: Sequence[Scenario], options: argparse.Namespace) -> list[Scenario]:
    """Return the scenarios asked for. Raises Unusable when one of them is not in the file."""
    wanted = {*options.scenario, *(SUBSETS[options.subset] if options.subset else ())}
    unknown = wanted - {scenario.id for scenario in scenarios}
    if unknown:
        raise scenario_file.Unusable(f"{options.flows} has no scenario {', '.join(sorted(unknown))}")
    return [scenario for scenario in scenarios if not wanted or scenario.id in wanted]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
