"""Run vagrant/tour.sh in the lab: build it, do with manifests what Kubernetes does, answer the script's requests.

The script sends one line for each thing it wants done and reads the answer (vagrant/target-lab.sh).
`ManifestCluster` does what an API server and its controllers would: cluster IPs, node ports, EndpointSlices, and
a name server. Proxies, pods' answers and all packets are real. The exit code is the script's.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from ipvsproxy import cli
from ipvsproxy.base import messages
from ipvsproxy.kernel.read.netns import socket_in
from ipvsproxy.probe.dns import resolve
from tests.lab import netns
from tests.lab.cases import TIMEOUT, TIMES, addresses_of
from tests.lab.lab import CLUSTER_CIDRS, DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.name_server import NameServer
from tests.lab.probe import ProbeQuestion, probe_many
from tests.support.api_object import ApiObject

REPO = pathlib.Path(__file__).resolve().parents[2]
TOUR = REPO / "vagrant/tour.sh"
POD_PORT = 8080
PODS_OF_A_NODE = 4
DNS_ADDRESS, API_ADDRESS = "10.96.0.10", "10.96.0.1"
TENANT_LABEL = "ipvsproxy.io/tenant"
# A node verifies so rarely that what the tour breaks stays broken until it is repaired.
MORE_ARGS = ("--ipvs-sync-period=1h", f"--tenant-label={TENANT_LABEL}")
PROXY_ARGS = (*DEFAULT_PROXY_ARGS, *MORE_ARGS)
DOMAIN = "svc.cluster.local"
API_NAME = f"kubernetes.default.{DOMAIN}"


class ManifestCluster:
    """Manifests in, manifests out: what the proxies' folder holds is what an API server would serve.

    Services and pods are called NAMESPACE/NAME.
    """

    def __init__(self, lab: Lab, folder: ManifestFolder, cleanup: contextlib.ExitStack) -> None:
        self.lab, self.folder = lab, folder
        self.pods: dict[str, tuple[LabHost, dict[str, str]]] = {}
        self.services: dict[str, ApiObject] = {}
        self.names = NameServer({API_NAME: API_ADDRESS}, {})
        self._cleanup = cleanup
        self._numbers = iter(range(1, 255))

    def describe(self) -> None:
        """Nodes, and what is there before anybody makes anything: the Service of the API server, and a DNS."""
        self.folder.write_nodes(self.lab)
        for name in ("default", "kube-system", "tour"):
            self.put_namespace(name)
        self._serve_dns("kube-system/kube-dns", self.names, self.lab.nodes[0].pods[-1])
        self._put_service(service("kubernetes", [port(443, 6443, name="https")], [API_ADDRESS]))
        self.write("default/kubernetes")

    def put_namespace(self, name: str, tenant: str = "") -> None:
        labels = {TENANT_LABEL: tenant} if tenant else {}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.folder.write(f"namespace-{name}", space)

    def serve_tenant_dns(self, tenant: str, namespace: str) -> None:
        """Do what CoreDNS for one tenant does: it knows the names of a namespace, and of `default`."""
        suffixes = (f".{namespace}.{DOMAIN}", f".default.{DOMAIN}")
        mine = {name: address for name, address in self.names.addresses.items() if name.endswith(suffixes)}
        self.put_namespace(f"{tenant}-dns", tenant)
        key = f"{tenant}-dns/tenant-dns-{tenant}"
        self._serve_dns(key, NameServer(mine, {}), self.lab.nodes[-1].pods[-1])

    def _serve_dns(self, key: str, names: NameServer, host: LabHost) -> None:
        self._cleanup.enter_context(names.serving(host))
        self._put_pod(f"{key}-1", host, {"dns": key.replace("/", ".")})
        ports = [port(53, 53, proto, proto.lower()) for proto in ("UDP", "TCP")]
        namespace, _, name = key.partition("/")
        made = service(name, ports, [DNS_ADDRESS if names is self.names else f"10.96.7.{next(self._numbers)}"])
        made["metadata"]["namespace"] = namespace
        made["metadata"]["annotations"] = {} if names is self.names else {"ipvsproxy.io/tenant-dns": "true"}
        made["spec"]["selector"] = {"dns": key.replace("/", ".")}
        self._put_service(made)
        self.write(key)

    def apply(self, objects: Iterable[ApiObject]) -> None:
        for made in objects:
            if made["kind"] == "Pod":
                self._start_pod(made)
            elif made["kind"] == "Service":
                self._put_service(made)
        for key in self.services:
            self.write(key)

    def _start_pod(self, pod: ApiObject) -> None:
        """Give it a host of its node that no other pod has; the last one is for a name server."""
        metadata = pod["metadata"]
        taken = {host.name for host, _ in self.pods.values()}
        hosts = self.lab.node(pod["spec"]["nodeName"]).pods[:-1]
        free = next(host for host in hosts if host.name not in taken)
        self.lab.responder.listen(free, POD_PORT, name=metadata["name"])
        self._put_pod(f"{metadata['namespace']}/{metadata['name']}", free, metadata["labels"])

    def _put_pod(self, key: str, host: LabHost, labels: dict[str, str]) -> None:
        self.pods[key] = (host, labels)
        namespace, _, name = key.partition("/")
        ips = [{"ip": host.ipv4}, {"ip": host.ipv6}]
        made = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": self.lab.node_of(host).name},
            "status": {"phase": "Running", "podIP": host.ipv4, "podIPs": ips},
        }  # fmt: skip
        self.folder.write(f"pod-{namespace}-{name}", made)

    def _put_service(self, made: ApiObject) -> None:
        """Take the new spec, with what was allotted before or is allotted now."""
        metadata, spec = made["metadata"], made["spec"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        metadata["uid"] = f"uid-{key.replace('/', '-')}"
        before = self.services.get(key, {}).get("spec", {})
        full = f"{metadata['name']}.{metadata['namespace']}.{DOMAIN}"
        if spec.get("type") == "ExternalName":
            self.names.aliases[full] = spec["externalName"]
        else:
            self._allot(spec, before)
            self.names.addresses[full] = spec["clusterIP"]
        self.services[key] = made

    def _allot(self, spec: ApiObject, before: ApiObject) -> None:
        number = next(self._numbers)
        families = [4, 6] if "DualStack" in spec.get("ipFamilyPolicy", "") else [4]
        fresh = [f"10.96.7.{number}" if family == 4 else f"fd00:10:96::7:{number}" for family in families]
        spec["clusterIPs"] = before.get("clusterIPs", spec.get("clusterIPs", fresh))
        spec["clusterIP"] = spec["clusterIPs"][0]
        spec["ipFamilies"] = [f"IPv{family}" for family in families]
        for each, old in zip(spec["ports"], before.get("ports", spec["ports"]), strict=True):
            each.setdefault("protocol", "TCP")
            if spec.get("type") in ("NodePort", "LoadBalancer"):
                each.setdefault("nodePort", old.get("nodePort") or random.randrange(30100, 32768))

    def write(self, key: str) -> None:
        """Put a Service and its EndpointSlices into the folder."""
        made = self.services[key]
        namespace, _, name = key.partition("/")
        slices = [
            endpoint_slice(
                name,
                made["spec"]["ports"],
                [endpoint(self.lab, host, family=family) for host in self._chosen(made)],
                family=family,
            )
            for family in (4, 6)
            if f"IPv{family}" in made["spec"].get("ipFamilies", ())
        ]
        for piece in slices:
            piece["metadata"]["namespace"] = namespace
        self.folder.write(f"service-{namespace}-{name}", made, *slices)

    def _chosen(self, made: ApiObject) -> Iterator[LabHost]:
        """Yield the pods that a Service selects."""
        wanted, space = made["spec"].get("selector") or {}, made["metadata"]["namespace"]
        for key, (host, labels) in self.pods.items():
            if wanted and key.startswith(f"{space}/") and wanted.items() <= labels.items():
                yield host

    def host(self, name: str) -> LabHost:
        found = self.pods.get(full_name(name))
        return found[0] if found else self.lab.host(name)


def full_name(name: str) -> str:
    """Return NAMESPACE/NAME of what the script calls NAME where it is in `tour`."""
    return name if "/" in name else f"tour/{name}"


class TargetCommands:
    """One method for each word of vagrant/target-lab.sh; what they return is printed for the script."""

    def __init__(self, lab: Lab, cluster: ManifestCluster) -> None:
        self.lab, self.cluster = lab, cluster
        self.status = 0

    def answer(self, line: str) -> Iterator[str]:
        """Do what a line says; the last line of the answer is the status."""
        word, *arguments = line.split()
        self.status = 0
        try:
            yield from getattr(self, f"do_{word}")(*arguments) or ()
        except (OSError, RuntimeError) as error:
            print(f"{line.strip()}: {error}", file=sys.stderr)
            self.status = 1
        yield f". {self.status}"

    def do_apply(self, path: str) -> None:
        self.cluster.apply(filter(None, yaml.safe_load_all(pathlib.Path(path).read_text())))

    def do_field(self, name: str, path: str) -> list[str]:
        """A JSONPath of dots and indexes, as the script needs it."""
        found: Any = self.cluster.services[full_name(name)]
        for key in path.strip("{}").replace("[", ".").replace("]", "").split(".")[1:]:
            found = found[int(key)] if key.isdigit() else (found or {}).get(key)
        return [] if found is None else [str(found)]

    def do_load_balance(self, name: str, address: str) -> None:
        ingress = [{"ip": address, "ipMode": "VIP"}]
        self.cluster.services[full_name(name)]["status"] = {"loadBalancer": {"ingress": ingress}}
        self.cluster.write(full_name(name))

    def do_namespace(self, name: str, tenant: str = "") -> None:
        self.cluster.put_namespace(name, tenant)

    def do_tenant_dns(self, tenant: str, namespace: str) -> None:
        self.cluster.serve_tenant_dns(tenant, namespace)

    def do_address(self, name: str, family: str) -> list[str]:
        return [self.lab.host(name).address(int(family))]

    def do_addresses(self, name: str) -> Iterable[str]:
        return addresses_of(self.lab, self.cluster.host(name).name)

    def do_ask(self, name: str, address: str, number: str) -> Iterator[str]:
        question = ProbeQuestion(self.cluster.host(name).netns, address, int(number))
        for result in probe_many([question] * TIMES, TIMEOUT):
            yield f"{result.name} {result.seen_source}" if result.name else result.outcome

    def do_route(self, address: str, node: str) -> None:
        way = ["unreachable", address] if node == "nowhere" else [address, "via", self.lab.host(node).ipv4]
        self.lab.run(self.lab.client, ["ip", "route", "del", address], check=False)
        self.lab.run(self.lab.client, ["ip", "route", "replace", *way])

    def do_look_up(self, name: str, wanted: str) -> list[str]:
        """Ask the cluster's DNS through its Service: the canonical name, and the address if it has one."""
        make = functools.partial(socket_in, self.cluster.host(name).netns)
        canonical = resolve(DNS_ADDRESS, wanted, "CNAME", make).canonical or wanted
        found = resolve(DNS_ADDRESS, canonical, "A", make)
        self.status = 1 if found.error else 0
        return [] if found.error else [" ".join((canonical, *found.addresses))]

    def do_on(self, node: str, program: str, *argument: str) -> list[str]:
        return self.lab.run(self.lab.host(node), [program, " ".join(argument)]).splitlines()

    def do_hairpin_mode(self, node: str, mode: str) -> None:
        for pod in self.lab.node(node).pods:
            link = ["ip", "link", "set", pod.name, "type", "bridge_slave", "hairpin", mode]
            self.lab.run(self.lab.host(node), link)

    def do_proxy(self, node: str, *words: str) -> list[str]:
        """A command of ipvsproxy on a node; in this process, since starting one takes long under emulation."""
        flags = [
            f"--manifests={self.cluster.folder.path}",
            f"--hostname-override={node}",
            f"--cluster-cidr={CLUSTER_CIDRS}",
        ]
        with netns.inside(self.lab.host(node).netns), contextlib.redirect_stdout(io.StringIO()) as said:
            self.status = cli.main([*words, *flags, *MORE_ARGS])
        return said.getvalue().splitlines()


@contextlib.contextmanager
def answering(lab: Lab, folder: pathlib.Path) -> Iterator[TargetCommands]:
    """Proxies on both nodes and a name server on one; the lab itself, of PODS_OF_A_NODE, is the caller's."""
    with contextlib.ExitStack() as cleanup:
        cluster = ManifestCluster(lab, ManifestFolder(folder), cleanup)
        cluster.describe()
        proxies = [lab.proxy(node, folder, PROXY_ARGS, wait=False) for node in lab.nodes]
        for proxy in proxies:
            proxy.wait_for(messages.SYNCED)
        yield TargetCommands(lab, cluster)


def run_script(answers: TargetCommands, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run the tour; folder is where the two of them meet."""
    requests, replies = folder / "requests", folder / "replies"
    os.mkfifo(requests)
    os.mkfifo(replies)

    def serve() -> None:
        with requests.open() as lines, replies.open("w") as out:
            for line in lines:
                out.writelines(f"{reply}\n" for reply in answers.answer(line))
                out.flush()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    env = os.environ | {"TARGET": "lab", "LAB": str(folder)}
    said = []
    with subprocess.Popen([TOUR], env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            said.append(line)
            print(line, end="", flush=True)
    serving.join(TIMEOUT)
    return subprocess.CompletedProcess(TOUR, process.returncode, "".join(said), "")


def main() -> int:
    with Lab(pods=PODS_OF_A_NODE) as lab, tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "manifests").mkdir()
        with answering(lab, folder / "manifests") as answers:
            return run_script(answers, folder).returncode


if __name__ == "__main__":
    sys.exit(main())
