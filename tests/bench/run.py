"""What syncs and changes cost, against the floor of the same kernel work in the same run.

Everything runs on the real kernel with libnftables and the real loop, in network namespaces of its own; only the
API server is missing. Each result is one JSON object a line; a table follows. Ratios within one run are what can
be compared between machines.

    make bench ARGS="--services 1000 --only cold_sync,burst"
    make bench ARGS="--services 100,1000,10000 --json costs.jsonl --chart docs/cost.png"
"""

import argparse
import cProfile
import json
import logging
import os
import pathlib
import pstats
import resource
import shutil
import subprocess
import sys

import structlog

from tests.bench.machine import warm_memory
from tests.bench.scenarios import MEASURE_MEMORY, SCENARIOS, TARGETS

PROFILED_LINES = 30
# For the C library: no memory is given back, and large pieces are reused as well.
KEEP_MEMORY = {f"MALLOC_{name}_": str(1 << 30) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}


def options(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--services", type=numbers, default=[10_000], metavar="N[,N]", help="default: 10000")
    add("--endpoints", type=int, default=5, metavar="N", help="of each Service; default: 5")
    add("--only", type=lambda text: text.split(","), metavar="NAME[,NAME]", help=", ".join(SCENARIOS))
    add("--large", type=int, default=0, metavar="N", help="one cold sync with so many Services as well")
    add(
        "--json",
        type=pathlib.Path,
        metavar="FILE",
        help="append the results to a file of this folder, for --chart",
    )
    add("--chart", type=pathlib.Path, metavar="PNG", help="draw cost against size from all results of --json")
    add("--profile", action="store_true", help="print where the time goes instead of measuring it")
    add("--kube-proxy", type=pathlib.Path, metavar="PATH", help="compare with this binary on the same lists")
    add("--mode", default="ipvs", choices=["ipvs", "nftables"], help="of kube-proxy")
    add("--kube-apiserver", type=pathlib.Path, metavar="PATH", help="follow this one, seen from outside")
    add("--etcd", type=pathlib.Path, metavar="PATH", help="for --kube-apiserver")
    add("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if (chosen.kube_apiserver is None) is not (chosen.etcd is None):
        parser.error("--kube-apiserver and --etcd need each other")
    unknown = set(chosen.only or ()) - SCENARIOS.keys()
    if unknown:
        parser.error(f"--only: no such scenario: {', '.join(sorted(unknown))}")
    return chosen


def numbers(text):
    return [int(part.replace("_", "")) for part in text.split(",")]


def main(argv):
    chosen = options(argv)
    if chosen.child:
        return child(chosen)
    if chosen.kube_proxy or chosen.kube_apiserver:
        from tests.bench import compare

        return compare.main(chosen)
    plan = [(name, count) for count in chosen.services for name in chosen.only or SCENARIOS]
    if chosen.large:
        plan += [(name, chosen.large) for name in ("cold_sync", "memory")]
    results = [found for name, count in plan if (found := measure(name, count, chosen))]
    if not chosen.profile:
        print(table(results))
    if chosen.chart:
        from tests.bench import drawing

        drawing.draw(chosen.json, chosen.chart)
    keep(filter(None, (chosen.json, chosen.chart)))
    return 0 if len(results) == len(plan) else 1


def keep(files):
    """Hand files to the host, if this is a guest: of what it writes elsewhere, nothing is left."""
    folder = os.environ.get("IPVSPROXY_KEPT")
    for file in files if folder else ():
        target = pathlib.Path(folder) / file.resolve().relative_to(pathlib.Path.cwd())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def measure(name, services, chosen):
    """Run one scenario in a process of its own and return its result, None if it failed."""
    argv = [sys.executable, "-m", "tests.bench.run", "--child", name, "--services", str(services)]
    argv += ["--endpoints", str(chosen.endpoints)] + ["--profile"] * chosen.profile
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | KEEP_MEMORY)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        print(f"{name} with {services} Services failed: status {done.returncode}", file=sys.stderr)
        return None
    if chosen.profile:
        return {"name": name}
    if chosen.json:
        with chosen.json.open("a") as out:
            out.write(done.stdout)
    return json.loads(done.stdout)


def child(chosen):
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    (services,) = chosen.services
    work = SCENARIOS[chosen.child]
    kept = None if work in MEASURE_MEMORY else warm_memory()
    if chosen.profile:
        profile = cProfile.Profile()
        profile.runcall(work, services, chosen.endpoints)
        pstats.Stats(profile).sort_stats("tottime").print_stats(PROFILED_LINES)
        return 0
    result = {"name": work.__name__, "services": services, "endpoints": chosen.endpoints}
    result |= work(services, chosen.endpoints)
    if result.get("floor_seconds"):
        result["ratio"] = round(result["seconds"] / result["floor_seconds"], 3)
    if kept is None:
        result.setdefault("rss_mib", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    print(json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in result.items()}))
    return 0


def table(results):
    """The results as lines for people, with what each is held against."""
    head = ("scenario", "Services", "seconds", "floor", "ratio", "MiB", "target", "")
    rows = [head, *map(row, results)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(head))]
    return "\n" + "\n".join("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) for line in rows)


def row(result):
    field, most = TARGETS[result["name"]]
    held = result.get(field)
    seconds, floor = (f"{result[key]:.4g}" if key in result else "" for key in ("seconds", "floor_seconds"))
    verdict = "" if held is None else "met" if held <= most else f"{field} {held}"
    extra = {k: result[k] for k in ("p90_ratio_to_small", "writes", "growth_kib_per_service") if k in result}
    told = " ".join([verdict, *(f"{key}={value}" for key, value in extra.items())])
    return (result["name"], str(result["services"]), seconds, floor, str(result.get("ratio", "")),
            str(result.get("rss_mib", "")), f"{field} <= {most}", told)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
