"""Connections to endpoints that are reached through a tunnel, by endpoint."""

from ipvsproxy.commands.survey_tunnels import find_tunnels
from ipvsproxy.kernel.read.connections import connections
from ipvsproxy.plan.planner import plan_service
from tests.support.build import config, node, service, slice_of

HEAD = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
VIP, ONE, TWO = "CB007101", "0AF4010A", "0AF4020A"


def test_connections_are_counted_by_endpoint(tmp_path):
    table = tmp_path / "ip_vs_conn"
    lines = [
        f"TCP C0000264 9C4{at:X} {address} 0050 {pod} 0050 {state}         30\n"
        for at, (address, pod, state) in enumerate(
            [(VIP, ONE, "SYN_RECV"), (VIP, ONE, "SYN_RECV"), (VIP, TWO, "ESTABLISHED"), (VIP, TWO, "SYN_RECV"),
             ("0A60000A", ONE, "ESTABLISHED")]
        )
    ]  # fmt: skip
    table.write_text(HEAD + "".join(lines))
    svc = service(forwarding="ipip", load_balancer_ips=["203.0.113.1"])
    slices = [slice_of("web", "10.244.1.10", "10.244.2.10", ports=((80, "TCP", ""),))]
    found = find_tunnels(plan_service(svc, slices, node(), config()).values(), connections(table))
    assert {(tunnel.endpoint, tunnel.waiting, tunnel.going_on) for tunnel in found} == {
        ("10.244.1.10:80", 2, 0), ("10.244.2.10:80", 1, 1),
    }  # fmt: skip
