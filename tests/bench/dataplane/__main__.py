"""What a packet costs: instructions of the whole machine for one round trip, beside floors and other proxies.

An emulated machine of one CPU whose clock counts instructions boots with the files of this one. The counts are the
same within 1 % on every run and every host. Each row is the 10th percentile of some hundred round trips.

    make bench-dataplane
    make bench-dataplane KUBE_PROXY=PATH ARGS="--services 10 --json counts.jsonl --chart docs/dataplane.svg"
    make bench-dataplane ARGS=--check                  # the rows of the budget; what costs more fails
    make bench-dataplane ARGS=--agree                  # measure them and write the budget anew
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

from tests.bench.dataplane import budget
from tests.bench.dataplane.objects import FEWEST
from tests.bench.dataplane.proxies import MODES, NEEDED
from tests.bench.dataplane.results import parse
from tests.bench.dataplane.rows import AUTO, FLOORS, OF_TENANT, OURS, TENANTS, WATCHED
from tests.bench.dataplane.table import tables

SIZES = [10, 1_000, 10_000]
HERE = pathlib.Path(__file__).parent
REPO = HERE.parents[2]
PROGRAM = REPO / ".cache/dataplane/round_trips"
RUN = [sys.executable, "-m", "tests.guest.run", "--counting", "--timeout", "86400", "--"]


def main(argv):
    chosen = options(argv)
    if chosen.results:
        results = parse(chosen.results.read_text().splitlines())
    else:
        compile_program()
        results = measured(plan(chosen), chosen.json)
    print(tables(results))
    if chosen.chart:
        from tests.bench.dataplane import chart

        chart.draw(results, chosen.chart)
    if chosen.agree:
        budget.write(results)
    return judge(results) if chosen.check else 0


def options(argv):
    parser = argparse.ArgumentParser(
        prog="make bench-dataplane", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--services", type=sizes, default=SIZES, metavar="N[,N]", help="default: 10,1000,10000")
    binary = os.environ.get("KUBE_PROXY") or None
    add("--kube-proxy", type=pathlib.Path, default=binary, metavar="PATH", help="default: KUBE_PROXY")
    add("--modes", type=lambda text: text.split(","), default=list(MODES), metavar="MODE[,MODE]",
        help=f"of kube-proxy: {', '.join(MODES)}")  # fmt: skip
    add("--json", type=pathlib.Path, metavar="FILE", help="append the counts, one JSON object a line")
    add("--results", type=pathlib.Path, metavar="FILE", help="take these counts instead of measuring")
    add("--chart", type=pathlib.Path, metavar="SVG", help="draw the ratios")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--check", action="store_true", help="only the rows of the budget; fail where one is exceeded"
    )
    which.add_argument(
        "--agree", action="store_true", help="only the rows of the budget; write their counts into it"
    )
    chosen = parser.parse_args(argv)
    complain(parser, chosen)
    return chosen


def sizes(text):
    found = [int(part.replace("_", "")) for part in text.split(",")]
    if min(found) < FEWEST:
        raise argparse.ArgumentTypeError(f"at least {FEWEST} Services are measured")
    return found


def complain(parser, chosen):
    """End with one sentence if something that is asked for cannot be had."""
    unknown = set(chosen.modes) - set(MODES)
    if unknown:
        parser.error(f"--modes: no such mode: {', '.join(sorted(unknown))}")
    if not chosen.kube_proxy or chosen.results:
        return
    if not os.access(chosen.kube_proxy, os.X_OK):
        parser.error(f"--kube-proxy: {chosen.kube_proxy} is no program")
    missing = {name for mode in chosen.modes for name in NEEDED[mode] if not shutil.which(name)}
    if missing:
        parser.error(f"kube-proxy in modes {', '.join(chosen.modes)} needs {', '.join(sorted(missing))}")


def plan(chosen):
    """Return what the machine is to measure; see `measure`."""
    if chosen.check or chosen.agree:
        watched = sorted({row.services for row in WATCHED})
        rows = [dataclasses.astuple(row) for row in sorted(WATCHED)]
        peers = [*FLOORS, OURS, AUTO, TENANTS, OF_TENANT]
        return {"services": watched, "peers": peers, "rows": rows, "kube_proxy": None}
    theirs = [f"kube-proxy {mode}" for mode in chosen.modes] if chosen.kube_proxy else []
    binary = str(chosen.kube_proxy.resolve()) if chosen.kube_proxy else None
    peers = [*FLOORS, OURS, AUTO, TENANTS, OF_TENANT, *theirs]
    return {"services": chosen.services, "peers": peers, "rows": None, "kube_proxy": binary}


def compile_program():
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", PROGRAM, HERE / "round_trips.c"], check=True)


def measured(wanted, kept):
    """Boot the machine, have it measure, and return the results; what it says on the way is printed."""
    argv = [*RUN, sys.executable, "-m", "tests.bench.dataplane.measure", str(PROGRAM), json.dumps(wanted)]
    lines = []
    with subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE, text=True) as machine:
        for line in machine.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            lines.append(line)
            if kept and line.startswith("{"):
                with kept.open("a") as file:
                    file.write(line)
    if machine.returncode:
        sys.exit(f"the measurement failed: status {machine.returncode}")
    return parse(lines)


def judge(results):
    """Print each row that is not as agreed; the exit status."""
    agreed = budget.read()
    for row in budget.cheaper(agreed, results):
        print(
            f"{row}: {results.counts[row]:,} instructions, fewer than agreed: `make bench-dataplane ARGS=--agree`"
        )
    sentences = budget.exceeded(agreed, results)
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
