"""Which of upstream's specs of [sig-network] do not run, and why: a pattern for the name, and the reason."""

from __future__ import annotations

import re

LEFT_OUT = {
    r"NetworkPolicy|Netpol|\[Feature:.*NetworkPolicy": "network policies are no task of a service proxy",
    r"Ingress(Class)? API|\[sig-network\] Ingress|Loadbalancing: L7": "Ingresses are no task of a service proxy",
    r"\[Feature:Networking-(IPv4|IPv6|DNS)\]": "needs the internet",
    r"\[Provider:GCE\]": "needs the name server of Google's cloud",
    r"DNS configMap nameserver": "changes the configuration of CoreDNS' pods, of which this cluster has none",
    r"DNS should support configurable pod resolv.conf": "asks CoreDNS in agnhost's official image",
    r"invalid conntrack state bug": "needs an image of its own, regression-issue-74839; test_conntrack.py has it",
    r"\[Feature:Networking-?Performance\]": "measures the bandwidth of the machine with iperf",
    r"\[Feature:KubeProxyNFAcct\]": "reads a counter of kube-proxy's iptables mode",
    r"restarting (kube-proxy|apiserver)": "logs in to nodes by ssh; test_daemonset.py has it",
    r"recreate its iptables rules": "deletes rules of kube-proxy's iptables mode, by ssh",
    r"DNS.* scale|Feature:PerformanceDNS": "measures the name server",
    r"kube-proxy migration": "changes how kube-proxy itself is installed",
}


def left_out(spec: str) -> str | None:
    """Why a spec does not run; None if it does."""
    return next((reason for pattern, reason in LEFT_OUT.items() if re.search(pattern, spec)), None)
