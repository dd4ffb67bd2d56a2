import queue
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.errors import Fatal
from ipvsproxy.config import Config
from ipvsproxy.process import app


def test_settings_for_a_family_the_host_has_not_got_end_the_start(monkeypatch):
    monkeypatch.setattr(app.host, "families", lambda: frozenset((4,)))
    with pytest.raises(Fatal, match="clusterCIDR fd00::/8"):
        app._families(Config("n", cluster_cidrs=("fd00::/8",)))
    assert app._families(Config("n", cluster_cidrs=("10.0.0.0/8",))) == {4}


OTHER = Config("n", other_mode="FILE: KubeProxyConfiguration.mode is iptables, and ...")


def test_a_kube_proxy_that_still_serves_in_another_mode_is_not_replaced(monkeypatch):
    monkeypatch.setattr(app.kube_proxy, "other_mode", lambda _: "127.0.0.1:10249 answers in mode iptables")
    with pytest.raises(Fatal, match=r"running on this node \(127.0.0.1:10249 .*; nothing has been changed.*FILE"):
        app.check_mode(OTHER)
    app.check_mode(Config("n"))  # whoever asked for it, or configured mode ipvs, is not asked


def test_what_a_kube_proxy_of_another_mode_has_left_is_taken_over_with_a_warning(monkeypatch):
    monkeypatch.setattr(app.kube_proxy, "other_mode", lambda _: "")
    with capture_logs() as logs:
        app.check_mode(OTHER)
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [("warning", OTHER.other_mode)]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_thread_that_crashes_ends_the_process(monkeypatch, guarded):
    ended = queue.SimpleQueue()

    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(app.os, "_exit", ended.put)
    monkeypatch.setattr(threading, "excepthook", app._crashed)
    with capture_logs() as logs:
        if guarded:
            app._guard("loop", fail)
        else:
            threading.Thread(target=fail, name="loop").start()
        assert ended.get(timeout=30) == 1
    (entry,) = logs
    assert (entry["thread"], entry["exc_info"][0]) == ("loop", ZeroDivisionError)


def test_a_thread_that_cannot_go_on_reports_why_in_one_line(monkeypatch):
    ended = queue.SimpleQueue()

    def fail():
        raise Fatal("no kubeconfig")

    monkeypatch.setattr(app.os, "_exit", ended.put)
    with capture_logs() as logs:
        app._guard("loop", fail)
        assert ended.get(timeout=30) == 1
    assert [(entry["event"], entry["err"]) for entry in logs] == [(messages.FATAL, "no kubeconfig")]


def test_every_thread_counts_from_the_beginning(monkeypatch):
    def stop():
        raise InterruptedError

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # to be put back
    monkeypatch.setattr(app.garbage_collection, "expect_many_objects", stop)
    with pytest.raises(InterruptedError):
        app.run(Config("n"), list)
    assert threading.excepthook is app._crashed


@pytest.mark.parametrize("config", [Config("n", manifests=Path("/none")), Config("n", kubeconfig=Path("/none"))])
def test_nothing_is_changed_nor_listened_on_where_no_objects_can_come_from(monkeypatch, config):
    for name in ("open_kernel", "prepare", "Watcher", "_listen", "InstanceLock"):
        monkeypatch.setattr(app, name, lambda *_: pytest.fail("too early"))
    for name in ("set_oom_score", "allow_descriptors"):
        monkeypatch.setattr(app.host, name, lambda *_: None)
    monkeypatch.setattr(app.garbage_collection, "expect_many_objects", lambda: None)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # to be put back
    with pytest.raises(Fatal, match="/none: No such file or directory"):
        app.run(config, list)
