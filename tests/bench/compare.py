"""ipvsproxy beside a kube-proxy, if there is one: the same lists, configuration and questions, in one run.

They are seen from outside only. Each gets a network namespace of its own with an API server (the suite's, or a
real one), in which every pod address is local and answers on two ports. A proxy is in sync when a sample of
Services answers on its VIPs; a change (the target port of one Service) has arrived when the VIP answers from the
other port.
"""

import contextlib
import json
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from tests.bench import cluster
from tests.bench.namespace import fresh_network
from tests.bench.serving import serving

SAMPLE = 50
CHANGES = 10
PORTS = {8080: b"old", 8081: b"new"}
PATIENCE = 1800.0
ANSWER_SECONDS = 0.5
LATELY = 30.0
NEEDED = {"ipvs": ("iptables", "ipset"), "nftables": ("nft",)}


def main(chosen):
    """Measure each on all of the wanted sizes and print a line for it."""
    missing = [name for name in NEEDED[chosen.mode] if chosen.kube_proxy and not shutil.which(name)]
    if missing:
        print(f"kube-proxy in mode {chosen.mode} needs {', '.join(missing)}", file=sys.stderr)
        return 1
    subjects = {"ipvsproxy": ([sys.executable, "-m", "ipvsproxy"], "ipvs")}
    if chosen.kube_proxy:
        theirs = {f"kube-proxy {chosen.mode}": ([chosen.kube_proxy.resolve()], chosen.mode)}
        subjects = theirs | subjects
    for services in chosen.services:
        for name, (argv, mode) in subjects.items():
            result = in_thread(lambda a=argv, m=mode, n=services: measure(a, m, n, chosen))
            print(
                json.dumps({"name": name, "services": services, "endpoints": chosen.endpoints} | result),
                flush=True,
            )
    return 0


def in_thread(work):
    """Do something in a thread of its own, which may leave its network namespace."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def measure(argv, mode, services, chosen):
    fresh_network()
    for words in (
        "address add 192.0.2.1/32 dev lo",
        "route add local 10.128.0.0/9 dev lo",
        "route add default dev lo src 192.0.2.1",  # rules that rewrite VIPs see only what has somewhere to go
    ):
        subprocess.run(["ip", *words.split()], check=True)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        programs = (chosen.kube_apiserver, chosen.etcd) if chosen.kube_apiserver else None
        server = stack.enter_context(serving(services, chosen.endpoints, folder, programs))
        for port, answer in PORTS.items():
            stack.enter_context(answering(port, answer))
        log = stack.enter_context((folder / "log").open("wb"))
        config = write_config(folder, server, mode)
        began = time.perf_counter()
        process = subprocess.Popen(
            [*argv, f"--config={config}", "--hostname-override=node0"], stdout=log, stderr=log
        )
        stack.callback(process.kill)
        try:
            return follow(process, server, services, chosen.endpoints, began)
        except TimeoutError as error:
            print((folder / "log").read_text()[-3000:], file=sys.stderr)
            return {"failed": str(error)}


def follow(process, server, services, endpoints, began):
    """Wait for the first sync, then for each of some changes."""
    server.wait_for_list(lambda: not ended(process), PATIENCE)
    listed = time.perf_counter()
    numbers = list(range(0, services, max(1, services // SAMPLE)))
    for number in (*numbers, services - 1):
        wait_until(process, number, b"old")
    synced = time.perf_counter()
    cpu = cpu_seconds(process)
    changes = [change(process, server, numbers[-1 - n % len(numbers)], endpoints, n) for n in range(CHANGES)]
    before = cpu_seconds(process)
    time.sleep(LATELY)
    return {
        "start_seconds": round(listed - began, 2),
        "sync_seconds": round(synced - listed, 2),
        "sync_cpu_seconds": round(cpu, 2),
        "change_seconds_p50": round(statistics.median(changes), 4),
        "change_seconds_max": round(max(changes), 4),
        "idle_cpu_share": round((cpu_seconds(process) - before) / LATELY, 5),
        "rss_mib": rss_mib(process),
    }


def change(process, server, number, endpoints, round_):
    """Move a Service to its other target port and return how long it takes to get there."""
    port = 8080 if round_ // SAMPLE % 2 else 8081
    piece = cluster.endpoint_slice(number, endpoints)
    piece["ports"][0]["port"] = port
    began = time.perf_counter()
    server.put(piece)
    wait_until(process, number, PORTS[port])
    return time.perf_counter() - began


def wait_until(process, number, wanted):
    """Ask a Service again and again until it answers as wanted. Raises TimeoutError."""
    deadline = time.perf_counter() + PATIENCE
    while ask(cluster.cluster_ip(number)) != wanted:
        ended(process)
        if time.perf_counter() > deadline:
            raise TimeoutError(f"Service {number} did not answer {wanted} in {PATIENCE} s")
        time.sleep(0.005)


def ended(process):
    """False, or a TimeoutError: it will never answer."""
    if process.poll() is not None:
        raise TimeoutError(f"it ended with status {process.returncode}")
    return False


def ask(address):
    try:
        with socket.create_connection((address, 80), ANSWER_SECONDS) as connection:
            return connection.recv(16)
    except OSError:
        return b""


@contextlib.contextmanager
def answering(port, answer):
    """Accept connections on a port of every address, say one word and hang up."""
    listener = socket.create_server(("", port), backlog=1024)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.send(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def write_config(folder, server, mode):
    """One KubeProxyConfiguration for both, but for the mode."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clusterCIDR": "10.128.0.0/9",
        "clientConnection": {"kubeconfig": str(server.kubeconfig)},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
        "ipvs": {"minSyncPeriod": "0s", "syncPeriod": "30s", "scheduler": "rr"},
        "nftables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
    path = folder / "config.conf"
    path.write_text(json.dumps(config))
    return path


def cpu_seconds(process):
    """User and system time of a process and the children it has waited for."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / 100


def rss_mib(process):
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024)
