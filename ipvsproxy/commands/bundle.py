"""`ipvsproxy support-bundle [FILE]`: one archive with everything that helps to understand a node from afar.

What `doctor` reads and reports, the objects, the state of the kernel, drift, metrics, the settings, and recent
logs. Secrets are taken out (`diagnosis.redact`); only its maker may read the file. `doctor --facts facts.json`
judges it again, `plan --from objects.json` plans from its objects.
"""

import calendar
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from ipvsproxy.base.address import format_ip
from ipvsproxy.base.errors import plain
from ipvsproxy.base.files import create
from ipvsproxy.commands.command_table import EXIT_OK
from ipvsproxy.commands.doctor import document, parts
from ipvsproxy.commands.invocation import CommandFailed, Invocation, WrongUsage
from ipvsproxy.commands.output import lines, note
from ipvsproxy.commands.running import adopted
from ipvsproxy.commands.survey import SurveyResult, survey
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import to_json
from ipvsproxy.diagnosis.finding import Finding
from ipvsproxy.diagnosis.node import diagnose
from ipvsproxy.diagnosis.redact import redacted, slimmed
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.once import Objects
from ipvsproxy.plan.state import KernelState
from ipvsproxy.probe.web import get, read_metrics
from ipvsproxy.ruleset.codec import texts

VERSIONS = {
    Kind.SERVICE: "v1",
    Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1",
    Kind.NODE: "v1",
    Kind.NAMESPACE: "v1",
    Kind.POD: "v1",
}
LOG_FOLDER, LOG_PATTERN = Path("/var/log/containers"), "*ipvsproxy*.log"
LOG_BYTES = 1 << 20
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NO_LOGS = "logs/how-to-get-them.txt"
STANDARD_OUTPUT = "-"
README = """What `ipvsproxy support-bundle` has collected. Secrets have been taken out by their looks: read it
before you pass it on.

findings.txt         the output of `ipvsproxy doctor`, findings.json for programs
facts.json           the facts behind the findings: ipvsproxy doctor --facts facts.json
objects.json         Services, EndpointSlices, Nodes: ipvsproxy plan --from objects.json
kernel.txt           virtual servers, VIPs and elements of our nft table
drift.txt            what in the kernel is not as the objects want it
configuration.yaml   the settings by which the node was judged, flags.txt as flags
running.json         the settings of the proxy that runs here
metrics.txt          its metrics
logs/                the ends of its logs, or how to get them where they cannot be read here
"""


def run(invocation: Invocation) -> int:
    """Look, and write the archive."""
    if len(invocation.arguments) > 1:
        raise WrongUsage("one file at most")
    invocation, made = adopted(invocation), time.gmtime()
    name = f"ipvsproxy-{invocation.config.node_name}-{time.strftime('%Y%m%dT%H%M%SZ', made)}"
    target = invocation.arguments[0] if invocation.arguments else f"{name}.tar.gz"
    seen = survey(invocation.config, invocation.flags["cluster-domain"], invocation.origin)
    files = dict(
        contents(seen, invocation.config, Path(invocation.flags["logs"]) if invocation.flags["logs"] else None)
    )
    try:
        if target == STANDARD_OUTPUT:
            pack(sys.stdout.buffer, name, files, calendar.timegm(made))
        else:
            write(Path(target), name, files, calendar.timegm(made))
    except OSError as error:
        raise CommandFailed(f"{target}: {plain(error)}") from None
    what = "the bundle" if target == STANDARD_OUTPUT else target
    note(f"wrote {what}, without what looks like a secret: read it before you pass it on")
    if NO_LOGS in files:
        note(files[NO_LOGS])
    return EXIT_OK


def contents(seen: SurveyResult, config: Config, log: Path | None) -> Iterator[tuple[str, str]]:
    """Yield the name and text of each file."""
    findings = diagnose(seen.facts)
    yield "README.txt", README
    yield from _findings(findings)
    yield "facts.json", redacted(to_json(seen.facts).decode())
    if seen.objects is not None:
        yield "objects.json", json.dumps(objects_list(seen.objects), indent=1)
    if seen.kernel is not None:
        yield "kernel.txt", "\n".join([*kernel_lines(seen.kernel), ""])
    yield "drift.txt", "\n".join([*(seen.facts.drift or ()), ""])
    yield "configuration.yaml", redacted(yaml.safe_dump(_plain(config.document), sort_keys=False))
    yield "flags.txt", redacted("\n".join(f"{name}={value}" for name, value in config.flags) + "\n")
    yield from _running(config)
    paths = [log] if log else sorted(LOG_FOLDER.glob(LOG_PATTERN))
    for path in paths:
        yield f"logs/{path.name}", redacted(_tail(path))
    if not paths:
        yield NO_LOGS, no_logs(config.node_name)


def no_logs(node: str) -> str:
    """Return how to get logs that are not to be had here.

    Our manifests do not mount the folder of logs: a proxy has no business with those of other pods.
    """
    namespace = NAMESPACE.read_text().strip() if NAMESPACE.exists() else "kube-system"
    of_this_node = f"-l app.kubernetes.io/name=ipvsproxy --field-selector spec.nodeName={node}"
    pods = f"kubectl -n {namespace} get pods {of_this_node}"
    return (
        f"There are no logs of ipvsproxy in {LOG_FOLDER} here. Please add them:\n\n"
        f"    kubectl -n {namespace} logs --timestamps $({pods} -o name) > ipvsproxy-{node}.log\n\n"
        "and the same with --previous after a restart; of a systemd unit: journalctl -u ipvsproxy\n"
    )


def _findings(findings: list[Finding]) -> Iterator[tuple[str, str]]:
    yield "findings.txt", redacted("\n".join([*lines(parts(findings), colours=False), ""]))
    yield "findings.json", redacted(json.dumps(document(findings), indent=1))


def objects_list(objects: Objects) -> dict[str, Any]:
    """Return all objects, slimmed, as one List."""
    items = [slimmed(kind, tree, VERSIONS[kind]) for kind in objects.kinds for tree in objects.trees(kind)]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def kernel_lines(state: KernelState) -> Iterator[str]:
    """Yield servers with their destinations, VIPs, elements."""
    for key, server in sorted(state.servers.items()):
        yield f"{key} {server.server.scheduler} flags {server.server.flags:#x} timeout {server.server.timeout}"
        yield from (
            f"  -> {destination} {attributes}" for destination, attributes in sorted(server.destinations.items())
        )
    yield from (f"VIP {format_ip(vip.address)} {vip.form.value}" for vip in sorted(state.vips))
    for kind, text, value in sorted(texts(state.elements.items())):
        yield f"{kind} {{ {text}{f' : {value}' if value else ''} }}"


def _running(config: Config) -> Iterator[tuple[str, str]]:
    metrics = read_metrics(config)
    if metrics is None or config.metrics_bind_address is None:
        return
    yield "metrics.txt", redacted(metrics)
    try:
        yield "running.json", redacted(get(config.metrics_bind_address, "/configz")[1])
    except OSError:
        return


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}\n"


def _plain(tree: Any) -> Any:
    """Return a tree of settings with dictionaries and lists that YAML knows."""
    if isinstance(tree, Mapping):
        return {str(name): _plain(value) for name, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def write(target: Path, folder: str, files: Mapping[str, str], modified: int) -> None:
    """Write the archive to a new file that only its owner can read. Raises OSError."""
    with os.fdopen(create(target), "wb") as raw:
        pack(raw, folder, files, modified)


def pack(raw: IO[bytes], folder: str, files: Mapping[str, str], modified: int) -> None:
    """Write the archive to what need not be a file. Raises OSError."""
    with tarfile.open(fileobj=raw, mode="w|gz") as archive:
        for name, text in files.items():
            data = text.encode()
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mtime, info.mode = len(data), modified, 0o600
            archive.addfile(info, io.BytesIO(data))
