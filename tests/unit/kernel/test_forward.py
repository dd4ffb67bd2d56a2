import errno

import pytest
from structlog.testing import capture_logs

from ipvsproxy.kernel import forward
from ipvsproxy.kernel.netlink import KernelError, Lost
from nft.fake import FakeNft


@pytest.mark.parametrize(
    "error", [Lost("netlink request", errno.ENOBUFS), KernelError("netlink dump", errno.EPERM)]
)
def test_chains_of_others_that_cannot_be_read_cost_nothing_else(monkeypatch, error):
    class Mute:
        def __init__(self, protocol):
            pass

        def request(self, _question):
            raise error

    monkeypatch.setattr(forward, "Wire", Mute)
    nft = FakeNft()
    with capture_logs() as logs:
        forward.Forwarding(nft).ensure()
    assert nft.transactions == []
    assert [entry["family"] for entry in logs] == ["ip", "ip6"]
