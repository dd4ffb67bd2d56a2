"""Run vagrant/tour.sh in the lab: build it, do with manifests what Kubernetes does, answer the script's requests.

The script sends one line for each thing it wants done and reads the answer (vagrant/target-lab.sh). `Cluster` does
what an API server and its controllers would: cluster IPs, node ports, EndpointSlices, and a name server. Proxies,
pods' answers and all packets are real. The exit code is the script's.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from ipvsproxy import cli
from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.cases import TIMEOUT, TIMES, addresses_of
from tests.lab.lab import CLUSTER_CIDRS, DEFAULT_PROXY_ARGS, Host, Lab
from tests.lab.manifests import Folder, Object, endpoint, endpoint_slice, port, service
from tests.lab.name_server import CNAME, HEADER, IN, NameServer
from tests.lab.probe import Question, probe_many

REPO = pathlib.Path(__file__).resolve().parents[2]
TOUR = REPO / "vagrant/tour.sh"
POD_PORT = 8080
DNS_ADDRESS, API_ADDRESS = "10.96.0.10", "10.96.0.1"
# A node verifies so rarely that what the tour breaks stays broken until it is mended.
PROXY_ARGS = (*DEFAULT_PROXY_ARGS, "--ipvs-sync-period=1h")
DOMAIN = "svc.cluster.local"


class Cluster:
    """Manifests in, manifests out: what the proxies' folder holds is what an API server would serve."""

    def __init__(self, lab: Lab, folder: Folder) -> None:
        self.lab, self.folder = lab, folder
        self.pods: dict[str, tuple[Host, dict[str, str]]] = {}
        self.services: dict[str, Object] = {}
        self.names = NameServer({f"kubernetes.default.{DOMAIN}": API_ADDRESS}, {})
        self._numbers = iter(range(1, 255))

    def describe(self, resolver: Host) -> None:
        """Nodes, and the Services that are there before anybody makes one."""
        self.folder.write_nodes(self.lab)
        dns = [port(53, 53, "UDP", "dns")]
        kube_dns = [
            service("kube-dns", dns, [DNS_ADDRESS]),
            endpoint_slice("kube-dns", dns, [endpoint(self.lab, resolver)]),
        ]
        for made in kube_dns:
            made["metadata"]["namespace"] = "kube-system"
        self.folder.write("dns", *kube_dns)
        self.folder.write("kubernetes", service("kubernetes", [port(443, 6443, name="https")], [API_ADDRESS]))

    def apply(self, objects: Iterable[Object]) -> None:
        for made in objects:
            if made["kind"] == "Pod":
                self._start_pod(made)
            elif made["kind"] == "Service":
                self._put_service(made)
        for name in self.services:
            self.write(name)

    def _start_pod(self, pod: Object) -> None:
        """Give it a host of its node that no other pod has."""
        name, metadata = pod["metadata"]["name"], pod["metadata"]
        taken = {host.name for host, _ in self.pods.values()}
        free = next(host for host in self.lab.node(pod["spec"]["nodeName"]).pods if host.name not in taken)
        self.lab.responder.listen(free, POD_PORT, name=name)
        self.pods[name] = (free, metadata["labels"])

    def _put_service(self, made: Object) -> None:
        """Take the new spec, with what was allotted before or is allotted now."""
        name, spec = made["metadata"]["name"], made["spec"]
        made["metadata"]["uid"] = f"uid-{name}"
        before = self.services.get(name, {}).get("spec", {})
        if spec.get("type") == "ExternalName":
            self.names.aliases[f"{name}.tour.{DOMAIN}"] = spec["externalName"]
        else:
            self._allot(spec, before)
            self.names.addresses[f"{name}.tour.{DOMAIN}"] = spec["clusterIP"]
        self.services[name] = made

    def _allot(self, spec: Object, before: Object) -> None:
        number = next(self._numbers)
        families = [4, 6] if "DualStack" in spec.get("ipFamilyPolicy", "") else [4]
        fresh = [f"10.96.7.{number}" if family == 4 else f"fd00:10:96::7:{number}" for family in families]
        spec["clusterIPs"] = before.get("clusterIPs", fresh)
        spec["clusterIP"] = spec["clusterIPs"][0]
        spec["ipFamilies"] = [f"IPv{family}" for family in families]
        for each, old in zip(spec["ports"], before.get("ports", spec["ports"]), strict=True):
            each.setdefault("protocol", "TCP")
            if spec.get("type") in ("NodePort", "LoadBalancer"):
                each.setdefault("nodePort", old.get("nodePort") or random.randrange(30100, 32768))

    def write(self, name: str) -> None:
        """Put a Service and its EndpointSlices into the folder."""
        made = self.services[name]
        wanted = made["spec"].get("selector") or {}
        chosen = [host for host, labels in self.pods.values() if wanted and wanted.items() <= labels.items()]
        slices = [
            endpoint_slice(
                name,
                made["spec"]["ports"],
                [endpoint(self.lab, host, family=family) for host in chosen],
                family=family,
            )
            for family in (4, 6)
            if f"IPv{family}" in made["spec"].get("ipFamilies", ())
        ]
        for piece in slices:
            piece["metadata"]["namespace"] = "tour"
        self.folder.write(name, made, *slices)

    def host(self, name: str) -> Host:
        return self.pods[name][0] if name in self.pods else self.lab.host(name)


class Answers:
    """One method for each word of vagrant/target-lab.sh; what they return is printed for the script."""

    def __init__(self, lab: Lab, cluster: Cluster) -> None:
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
        found: Any = self.cluster.services[name]
        for key in path.strip("{}").replace("[", ".").replace("]", "").split(".")[1:]:
            found = found[int(key)] if key.isdigit() else (found or {}).get(key)
        return [] if found is None else [str(found)]

    def do_load_balance(self, name: str, address: str) -> None:
        ingress = [{"ip": address, "ipMode": "VIP"}]
        self.cluster.services[name]["status"] = {"loadBalancer": {"ingress": ingress}}
        self.cluster.write(name)

    def do_address(self, name: str, family: str) -> list[str]:
        return [self.lab.host(name).address(int(family))]

    def do_addresses(self, name: str) -> Iterable[str]:
        return addresses_of(self.lab, self.cluster.host(name).name)

    def do_ask(self, name: str, address: str, number: str) -> Iterator[str]:
        question = Question(self.cluster.host(name).netns, address, int(number))
        for result in probe_many([question] * TIMES, TIMEOUT):
            yield f"{result.name} {result.seen_source}" if result.name else result.outcome

    def do_route(self, address: str, node: str) -> None:
        way = ["unreachable", address] if node == "nowhere" else [address, "via", self.lab.host(node).ipv4]
        self.lab.run(self.lab.client, ["ip", "route", "del", address], check=False)
        self.lab.run(self.lab.client, ["ip", "route", "replace", *way])

    def do_look_up(self, name: str, wanted: str) -> list[str]:
        """Ask the cluster's DNS through its Service: the canonical name."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in wanted.split("."))
        question = labels + b"\0" + struct.pack(">HH", CNAME, IN)
        with netns.open_socket(self.cluster.host(name).netns, DNS_ADDRESS, "udp") as asking:
            asking.settimeout(TIMEOUT)
            asking.sendto(HEADER.pack(1, 0x100, 1, 0, 0, 0) + question, (DNS_ADDRESS, 53))
            answer = asking.recv(4096)[HEADER.size + len(question) + 12 :]
        found = []
        while answer and answer[0]:
            found.append(answer[1 : 1 + answer[0]].decode())
            answer = answer[1 + answer[0] :]
        return [".".join(found)]

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
            self.status = cli.main([*words, *flags, "--ipvs-sync-period=1h"])
        return said.getvalue().splitlines()


@contextlib.contextmanager
def answering(lab: Lab, folder: pathlib.Path) -> Iterator[Answers]:
    """Proxies on both nodes and a name server on one; the lab itself is the caller's."""
    cluster = Cluster(lab, Folder(folder))
    resolver = lab.nodes[0].pods[-1]
    cluster.describe(resolver)
    proxies = [lab.proxy(node, folder, PROXY_ARGS, wait=False) for node in lab.nodes]
    with cluster.names.serving(resolver):
        for proxy in proxies:
            proxy.wait_for(messages.SYNCED)
        yield Answers(lab, cluster)


def run_script(answers: Answers, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
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
    with Lab() as lab, tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "manifests").mkdir()
        with answering(lab, folder / "manifests") as answers:
            return run_script(answers, folder).returncode


if __name__ == "__main__":
    sys.exit(main())
