"""NodePorts among the local ports are reserved beside what others have reserved, and given back."""

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from structlog.testing import capture_logs

from ipvsproxy.kernel import host, local_ports
from ipvsproxy.kernel.local_ports import LocalPorts, format_ports, give_back, parse_ports, unreserved

NODE_PORTS = "30000-32767"


class PortFiles:
    """The two files, and the alias of kube-ipvs0."""

    def __init__(self, folder, monkeypatch):
        self._folder = folder / "net/ipv4"
        self._folder.mkdir(parents=True)
        self.alias = frozenset()
        self.records = 0
        self.local_range("32768\t60999")
        self.reserve("")
        monkeypatch.setattr(host, "PROC_SYS", folder)
        monkeypatch.setattr(local_ports, "recorded", lambda: self.alias)
        monkeypatch.setattr(local_ports, "record", self._record)

    def _record(self, ports):
        self.alias = ports
        self.records += 1

    def local_range(self, text):
        (self._folder / "ip_local_port_range").write_text(f"{text}\n")

    def reserve(self, text):
        (self._folder / "ip_local_reserved_ports").write_text(f"{text}\n")

    @property
    def reserved(self):
        return (self._folder / "ip_local_reserved_ports").read_text().strip()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return PortFiles(tmp_path, monkeypatch)


@pytest.mark.parametrize("text", ["", "1", "1-3", "8080,30000-32767", "1,3,5-6,65535"])
def test_ports_are_written_as_they_are_read(text):
    assert format_ports(parse_ports(text)) == text


def test_where_nothing_overlaps_nothing_is_written(machine):
    LocalPorts(NODE_PORTS).reserve()
    assert (machine.reserved, machine.records) == ("", 0)
    assert unreserved(NODE_PORTS) == frozenset()


def test_only_what_overlaps_is_reserved(machine):
    machine.local_range("32000 60999")
    assert format_ports(unreserved(NODE_PORTS)) == "32000-32767"
    LocalPorts(NODE_PORTS).reserve()
    assert machine.reserved == "32000-32767"
    assert unreserved(NODE_PORTS) == frozenset()


def test_what_others_have_reserved_stays_theirs(machine):
    machine.local_range("1024 65535")
    machine.reserve("8080,31000-31009")
    LocalPorts(NODE_PORTS).reserve()
    assert machine.reserved == "8080,30000-32767"
    assert give_back() == []
    assert machine.reserved == "8080,31000-31009"


def test_a_restart_and_an_older_range_leave_nothing_behind(machine):
    machine.local_range("1024 65535")
    LocalPorts(NODE_PORTS).reserve()
    LocalPorts("20000-20009").reserve()
    assert machine.reserved == "20000-20009"
    LocalPorts("").reserve()
    assert machine.reserved == ""


def test_what_others_take_away_is_put_back_and_what_they_add_is_kept(machine):
    machine.local_range("1024 65535")
    ports = LocalPorts(NODE_PORTS)
    ports.reserve()
    machine.reserve("99")
    ports.reserve()
    assert machine.reserved == "99,30000-32767"


def test_a_link_that_was_made_anew_gets_the_record_again(machine):
    machine.local_range("1024 65535")
    ports = LocalPorts(NODE_PORTS)
    ports.reserve()
    machine.alias = frozenset()
    ports.reserve()
    assert give_back() == []
    assert machine.reserved == ""


def test_nothing_is_reserved_that_could_not_be_recorded(machine, monkeypatch):
    def refused(ports):
        raise NetlinkError(1, "not permitted")

    machine.local_range("1024 65535")
    monkeypatch.setattr(local_ports, "record", refused)
    ports = LocalPorts(NODE_PORTS)
    with capture_logs() as lines:
        ports.reserve()
        ports.reserve()
    assert machine.reserved == ""
    assert [line["log_level"] for line in lines] == ["warning"]


def test_a_kernel_without_the_setting_is_left_alone(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "PROC_SYS", tmp_path / "nowhere")
    assert unreserved(NODE_PORTS) == frozenset()
    assert give_back() == []


def test_the_node_keeps_ports_for_its_own_connections(machine):
    machine.local_range("30000 32000")
    with capture_logs() as lines:
        LocalPorts(NODE_PORTS).reserve()
    assert machine.reserved == ""
    assert "less than half" in lines[0]["err"]
    assert format_ports(unreserved(NODE_PORTS)) == "30000-32000"
