"""The proxies that are measured: ipvsproxy, and a kube-proxy in each of its modes if there is one."""

import json
import os
import pathlib
import signal
import sys
import time
from functools import partial

from tests.bench.dataplane import objects
from tests.bench.dataplane.rows import AUTO, OF_TENANT, OURS, PORT, TENANTS
from tests.lab import netns
from tests.lab.lab import CLUSTER_CIDRS
from tests.lab.proxy import LabProxy
from tests.support.apiserver import ApiServer

LAST_WORDS = 3000
CALM_SECONDS, CALM_SHARE = 3.0, 0.3
MODES = ("ipvs", "nftables", "iptables")
NEEDED = {"ipvs": ("iptables", "ipset"), "nftables": ("nft",), "iptables": ("iptables",)}
"""Programs that kube-proxy calls."""


class Started:
    """A proxy in the node of a lab; it does not run while something is measured."""

    def __init__(self, lab, folder):
        self._lab, self._folder = lab, folder
        self._proxy = None

    def serves(self, _path):
        return True

    def pause(self):
        """Stop it once it is done: it may answer before that, and what it has started would go on."""
        while busy_share(CALM_SECONDS) > CALM_SHARE:
            pass
        self._proxy.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self._proxy.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self._proxy:
            self._proxy.kill()

    def last_words(self):
        """What it has logged in the end."""
        return self._proxy.text()[-LAST_WORDS:] if self._proxy else ""

    def has_ended(self):
        return not self._proxy.is_running()

    def _run(self, argv):
        node = self._lab.nodes[0]
        words = [*argv, f"--hostname-override={node.name}"]
        self._proxy = LabProxy(node.netns, words, self._folder / "log")
        self._proxy.start()


class Ours(Started):
    """ipvsproxy, which reads objects from files."""

    name, data_path = OURS, "ipvs"

    def start(self, services):
        (self._folder / "manifests").mkdir(exist_ok=True)
        self._write("first", [objects.node(self._lab), *objects.first_stage(self._lab, services)])
        self._run([
            sys.executable, "-m", "ipvsproxy", "run", f"--manifests={self._folder / 'manifests'}",
            f"--cluster-cidr={CLUSTER_CIDRS}", "--ipvs-min-sync-period=0s", f"--data-path={self.data_path}",
            *self.flags(),
        ])  # fmt: skip

    def flags(self):
        """Return further flags."""
        return []

    def grow(self):
        self._write("second", objects.second_stage(self._lab))

    def _write(self, name, items):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        hidden = self._folder / name
        hidden.write_text(text)
        hidden.replace(self._folder / "manifests" / f"{name}.json")


class OursByShortPath(Ours):
    """ipvsproxy with the short path, which all measured Services take."""

    name, data_path = AUTO, "auto"


class OursWithTenants(Ours):
    """ipvsproxy with two tenants, and Services in a shared namespace, as nearly all of them are."""

    name, tenant = TENANTS, ""

    def serves(self, path):
        return path.port == PORT

    def flags(self):
        return [f"--tenant-label={objects.LABEL}"]

    def start(self, services):
        (self._folder / "manifests").mkdir()
        self._write("tenants", objects.tenants(self._lab, self.tenant))
        super().start(services)


class OursOfOneTenant(OursWithTenants):
    """The same where the pod that asks and the Services are of one tenant."""

    name, tenant = OF_TENANT, "blue"


class KubeProxyPeer(Started):
    """A kube-proxy binary in one of its modes, which follows the suite's API server."""

    def __init__(self, lab, folder, binary, mode):
        super().__init__(lab, folder)
        self._binary, self._mode = binary, mode
        self.name = f"kube-proxy {mode}"
        self._server = None

    def start(self, services):
        with netns.inside(self._lab.nodes[0].netns):
            self._server = ApiServer().start()
        self._put([objects.node(self._lab), *objects.first_stage(self._lab, services)])
        self._run([self._binary, f"--config={self._config()}"])

    def grow(self):
        self._put(objects.second_stage(self._lab))

    def stop(self):
        super().stop()
        if self._server:
            self._server.stop()

    def _put(self, items):
        for item in items:
            self._server.put(item)

    def _config(self):
        path = self._folder / "config"
        kubeconfig = self._server.write_kubeconfig(self._folder / "kubeconfig")
        unlimited = {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"}
        rarely = {"minSyncPeriod": "0s", "syncPeriod": "1h"}
        path.write_text(json.dumps({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": self._mode, "clusterCIDR": CLUSTER_CIDRS, "conntrack": unlimited,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "ipvs": rarely | {"scheduler": "rr"}, "nftables": rarely, "iptables": rarely,
        }))  # fmt: skip
        return path


def busy_share(seconds):
    """The share of some seconds in which the processor was not idle."""
    before, began = idle(), time.monotonic()
    time.sleep(seconds)
    return 1 - (idle() - before) / (time.monotonic() - began)


def idle():
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def peers(names, kube_proxy):
    """Return what makes each of the named peers, by name, given a lab and a folder."""
    from tests.bench.dataplane.floors import BareConntrack, BareIpvs

    makers = {
        BareConntrack.name: lambda lab, _: BareConntrack(lab),
        BareIpvs.name: lambda lab, _: BareIpvs(lab),
        OURS: Ours,
        AUTO: OursByShortPath,
        TENANTS: OursWithTenants,
        OF_TENANT: OursOfOneTenant,
    }
    for mode in MODES if kube_proxy else ():
        makers[f"kube-proxy {mode}"] = partial(KubeProxyPeer, binary=kube_proxy, mode=mode)
    return {name: makers[name] for name in names}
