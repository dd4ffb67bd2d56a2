"""Upstream's own tests of Services, run against a cluster; what is left out of them, and why.

    python -m tests.cluster.e2e [--focus PATTERN] [--skip PATTERN] [--report NAME]

In the cluster that runs, or in one that runs as long as they do. Several may run in one cluster, if their reports
have names of their own.

Results are kept in .cache/e2e until `python -m tests.cluster.results` takes them into the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from tests.cluster import arguments, binaries, lifecycle, network, programs, results
from tests.cluster.binaries import BinaryMissing, Kube
from tests.cluster.kubectl import Kubectl
from tests.cluster.left_out import LEFT_OUT
from tests.cluster.place import Cluster

NEEDED = (*binaries.NEEDED, "agnhost", "e2e.test")
ALL = r"\[sig-network\]"


def words(cluster: Cluster, kube: Kube, focus: str, report: str, skip: str = "") -> list[str]:
    """The command."""
    folder = cluster.folder / "e2e" / report
    flags = {
        "provider": "skeleton",
        "kubeconfig": cluster.admin,
        "kubectl-path": kube["kubectl"],
        "num-nodes": cluster.size,
        "node-os-distro": "debian",
        "disable-log-dump": "true",
        "dump-logs-on-failure": "false",
        "report-dir": folder,
        "ginkgo.focus": focus,
        "ginkgo.skip": "|".join(f"(?:{pattern})" for pattern in (*LEFT_OUT, skip) if pattern),
        "ginkgo.no-color": "true",
        "ginkgo.silence-skips": "true",
        "ginkgo.timeout": "6h",
        "v": 1,
    }
    return cluster.inside(kube["e2e.test"], *(f"--{name}={value}" for name, value in flags.items()))


def run(cluster: Cluster, kube: Kube, focus: str, report: str, skip: str = "") -> int:
    """Run them, keep the results, and return the program's exit code; its output is in the report's folder."""
    folder = cluster.folder / "e2e" / report
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("junit*.xml"):
        old.unlink()
    print(f"output: {folder / 'log'}", flush=True)
    with (folder / "log").open("w") as log:
        command = words(cluster, kube, focus, report, skip)
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    files = sorted(folder.glob("junit*.xml"))
    if not files:
        message = f"upstream's tests did not run ({folder / 'log'})"
        raise programs.Failed(message)
    specs = [spec for file in files for spec in results.read(file.read_text())]
    proxy = proxy_of(Kubectl(cluster, kube))
    today = datetime.now(UTC).date().isoformat()
    results.keep(specs, results.SpecRun(proxy, kube.version(), today), results.NEW / f"{report}.json")
    print(results.summary(specs))
    return code


def proxy_of(kubectl: Kubectl) -> str:
    """Which proxy runs, such as `ipvsproxy` or `kube-proxy nftables`; Missing if none or several."""
    named = ("ipvsproxy", "kube-proxy")
    found = [d["metadata"]["name"] for d in kubectl.get("daemonsets", "--namespace=kube-system")["items"]]
    found = [name for name in found if name in named]
    if len(found) != 1:
        message = f"the cluster must have one proxy, not {found}"
        raise BinaryMissing(message)
    if found == ["ipvsproxy"]:
        return "ipvsproxy"
    config = kubectl.get("configmap", "kube-proxy", "--namespace=kube-system")["data"]["config.conf"]
    return f"kube-proxy {re.findall(r'^mode: (.*)$', config, re.MULTILINE)[0]}"


def main(argv: list[str]) -> int:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.e2e", description=about)
    parser.add_argument("--focus", default=ALL, help="a regular expression; what matches runs")
    parser.add_argument("--skip", default="", help="a regular expression; what matches does not run this time")
    parser.add_argument("--report", default="all", help="the name of its results")
    arguments.add_name(parser)
    arguments.add(parser)
    options = parser.parse_args(argv)
    try:
        with opened(options) as found:
            return run(*found, options.focus, options.report, options.skip) if found else 0
    except (binaries.BinaryMissing, programs.Failed, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[tuple[Cluster, Kube] | None]:
    """The cluster that runs, or one that runs as long as the context lasts; None where KUBE is not given."""
    cluster = Cluster(options.name, options.nodes, options.plugins)
    if network.exists(cluster):
        yield lifecycle.remembered(options.name)
    elif not options.kube:
        print(binaries.NO_KUBE)
        yield None
    else:
        kube = binaries.open_folder(options.kube, NEEDED)
        with lifecycle.temporary(cluster, kube, options.proxy, options.mode):
            yield cluster, kube


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
