import errno
import json
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import yaml
from structlog.testing import capture_logs

from ipvsproxy.base import directory_watch, messages
from ipvsproxy.base.address import format_ip
from ipvsproxy.exchange.inbox import Inbox, Kind, Listed, SourceFailed, kinds
from ipvsproxy.kube import manifest_file, manifests
from ipvsproxy.kube.manifests import Folder, ManifestSource
from tests.support.apiserver import endpoint_slice, node, service

BAD_PORT = service("web", ports=[{"port": 0}])


@pytest.fixture(name="logs")
def _logs():
    with capture_logs() as logs:
        yield logs


def write(path, *objects):
    """Replace a file the way careful writers do."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(yaml.safe_dump_all(objects))
    fresh.rename(path)


def keys(events, kind=Kind.SERVICE):
    """Return the keys of the last Listed of a kind, None if there is none."""
    found = [set(event.objects) for event in events if event.kind is kind]
    return found[-1] if found else None


def ips(events):
    """Return each Service's ClusterIP in the last Listed."""
    (listed,) = [event for event in events if event.kind is Kind.SERVICE]
    return {key: format_ip(found.cluster_ips[0]) for key, found in listed.objects.items()}


def warnings(logs):
    """Return the warnings since the last call."""
    found = [entry for entry in logs if entry["log_level"] == "warning"]
    logs.clear()
    return found


def test_an_empty_folder_is_valid(tmp_path):
    folder = Folder(tmp_path)
    assert folder.load() == [Listed(kind, {}) for kind in (Kind.NODE, Kind.SERVICE, Kind.ENDPOINT_SLICE)]
    assert folder.load() == []


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        Folder(tmp_path / "none").load()


def test_all_kinds_of_files(tmp_path):
    write(tmp_path / "a.yaml", service("a"), endpoint_slice(), {"kind": "ConfigMap", "apiVersion": "v1"})
    write(tmp_path / "b.yml", {"kind": "List", "apiVersion": "v1", "items": [service("b"), node()]})
    (tmp_path / "c.json").write_text(json.dumps(service("c")))
    for name in (".hidden.yaml", "d.yaml~", "d.yaml.swp", "#d.yaml#", "README"):
        (tmp_path / name).write_text("nonsense: [")
    (tmp_path / "folder.yaml").mkdir()
    with capture_logs() as logs:
        events = Folder(tmp_path).load()
    assert keys(events) == {"default/a", "default/b", "default/c"}
    assert keys(events, Kind.ENDPOINT_SLICE) == {"default/web-abc"}
    assert keys(events, Kind.NODE) == {"node1"}
    assert warnings(logs) == []


def test_only_kinds_that_changed_are_reported_again(tmp_path):
    write(tmp_path / "a.yaml", service("a"))
    write(tmp_path / "b.yaml", endpoint_slice())
    folder = Folder(tmp_path)
    assert len(folder.load()) == 3
    write(tmp_path / "a.yaml", service("a"), service("b"))
    (event,) = folder.load()
    assert keys([event]) == {"default/a", "default/b"}
    write(tmp_path / "a.yaml", service("a", selector={"only": "noise"}), service("b"))
    assert folder.load() == []


@pytest.mark.parametrize(
    ("version", "kind", "taken"),
    [
        ("v1", "Service", True),
        ("", "Service", True),
        ("serving.knative.dev/v1", "Service", False),
        ("apps/v1", "Node", False),
    ],
)
def test_kinds_of_other_groups_are_not_ours(tmp_path, logs, version, kind, taken):
    write(tmp_path / "a.yaml", {**service(), "apiVersion": version, "kind": kind})
    assert keys(Folder(tmp_path).load()) == ({"default/web"} if taken else set())
    group = version.partition("/")[0]
    assert [line["reason"] for line in warnings(logs)] == (
        [] if taken else [f"no Service, EndpointSlice or Node in it; what it holds: 1 {kind}.{group}"]
    )


def test_an_old_version_is_refused(tmp_path, logs):
    write(tmp_path / "a.yaml", {**endpoint_slice(), "apiVersion": "discovery.k8s.io/v1beta1"})
    Folder(tmp_path).load()
    (line,) = warnings(logs)
    assert (line["field"], line["err"]) == ("apiVersion", "'discovery.k8s.io/v1beta1' is not read, only v1")


def test_a_refusal_reports_where_and_costs_one_object(tmp_path, logs):
    write(tmp_path / "a.yaml", service("a"), BAD_PORT, {"kind": "List", "items": [service("b"), {"x": 1}]})
    folder = Folder(tmp_path)
    events = folder.load()
    assert keys(events) == {"default/a", "default/b"}
    assert {event.kind: event.kept for event in events}[Kind.SERVICE] == {"default/web"}
    first, second = warnings(logs)
    assert first == {
        "event": messages.MANIFEST_REFUSED,
        "log_level": "warning",
        "file": "a.yaml",
        "document": 2,
        "kind": Kind.SERVICE,
        "object": "default/web",
        "field": "spec.ports[0].port",
        "err": "Expected `int` >= 1",
    }
    assert (second["document"], second["item"], second["field"]) == (3, 2, "kind")


def test_the_last_valid_version_stays_until_repaired(tmp_path, logs):
    path = tmp_path / "a.yaml"
    write(path, service("web"), service("b"))
    folder = Folder(tmp_path)
    folder.load()
    write(path, BAD_PORT)
    assert ips(folder.load()) == {"default/web": "10.96.0.10"}
    assert len(warnings(logs)) == 1
    write(path, service("c"), BAD_PORT)
    assert set(ips(folder.load())) == {"default/web", "default/c"}
    assert warnings(logs) == []  # said already
    write(path, service("web", clusterIP="10.96.0.77"))
    assert ips(folder.load()) == {"default/web": "10.96.0.77"}
    assert [entry["event"] for entry in logs if entry["log_level"] == "info"] == [messages.MANIFEST_ACCEPTED]


def test_the_last_valid_version_goes_with_its_file(tmp_path):
    write(tmp_path / "a.yaml", service("web"))
    folder = Folder(tmp_path)
    folder.load()
    write(tmp_path / "a.yaml", BAD_PORT)
    folder.load()
    (tmp_path / "a.yaml").unlink()
    assert ips(folder.load()) == {}


def test_an_object_that_lost_its_name_may_be_any_that_is_missing(tmp_path):
    write(tmp_path / "a.yaml", service("a"), service("b"))
    folder = Folder(tmp_path)
    folder.load()
    write(tmp_path / "a.yaml", service(""), service("b", clusterIP="10.96.0.11"))
    assert ips(folder.load()) == {"default/a": "10.96.0.10", "default/b": "10.96.0.11"}
    write(tmp_path / "a.yaml", service("b"))
    assert set(ips(folder.load())) == {"default/b"}


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("kind: Service\nmetadata: [", (2, 12), "did not find"),
        ("", None, "empty: it is being written, or was cut off"),
        ("a: 1\nb: *x\n", (2, 4), "alias *x"),
    ],
)
def test_a_file_that_does_not_parse_keeps_its_objects(tmp_path, logs, text, place, reason):
    path = tmp_path / "a.yaml"
    write(path, service("a"), service("b"))
    folder = Folder(tmp_path)
    folder.load()
    path.write_text(text)
    assert folder.load() == []
    (line,) = warnings(logs)
    assert (line["event"], line["file"]) == (messages.MANIFEST_FILE_REFUSED, "a.yaml")
    assert reason in line["err"]
    assert (line.get("line"), line.get("column")) == (place or (None, None))
    os.utime(path)
    assert folder.load() == []
    assert warnings(logs) == []
    write(path, service("a"))
    assert keys(folder.load()) == {"default/a"}
    assert messages.MANIFEST_FILE_ACCEPTED in [entry["event"] for entry in logs]


def test_a_document_that_does_not_parse_affects_nothing_else(tmp_path, logs):
    path = tmp_path / "a.yaml"
    write(path, service("a"), service("b"), service("c"))
    folder = Folder(tmp_path)
    folder.load()
    texts = [yaml.safe_dump(service("a", clusterIP="10.96.0.1")), "kind: [\n", yaml.safe_dump(service("d"))]
    path.write_text("---\n".join(texts))
    events = folder.load()
    assert keys(events) == {"default/a", "default/b", "default/c", "default/d"}, "any of the old ones may be in it"
    assert ips(events)["default/a"] == "10.96.0.1"
    (line,) = warnings(logs)
    assert (line["event"], line["document"]) == (messages.MANIFEST_REFUSED, 2)
    assert "line" in line["err"]
    write(path, service("a"), service("d"))
    assert keys(folder.load()) == {"default/a", "default/d"}


def test_folders_in_folders(tmp_path, logs):
    (tmp_path / "prod" / "core").mkdir(parents=True)
    write(tmp_path / "prod" / "core" / "services.yaml", service("b"))
    (tmp_path / "a.json").write_text(json.dumps(service("a")) + json.dumps(endpoint_slice()))
    folder = Folder(tmp_path)
    assert keys(folder.load()) == {"default/a", "default/b"}
    assert len(folder.folders) == 3
    (tmp_path / "prod" / "core").rename(tmp_path / "prod" / ".core")
    assert keys(folder.load()) == {"default/a"}
    assert warnings(logs) == []


def test_a_folder_within_that_cannot_be_read_keeps_its_objects(tmp_path, logs, monkeypatch):
    (tmp_path / "shut").mkdir()
    write(tmp_path / "shut" / "web.yaml", service())
    folder = Folder(tmp_path)
    folder.load()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert folder.load() == folder.load() == []
    (line,) = warnings(logs)
    assert (line["directory"], line["err"]) == ("shut/", "Permission denied")


def test_a_folder_with_endpoints_only_reports_what_to_add(tmp_path, logs):
    endpoints = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web", "namespace": "default"}}
    write(tmp_path / "a.yaml", service(), endpoints)
    folder = Folder(tmp_path)
    folder.load()
    folder.load()
    (line,) = warnings(logs)
    assert line["reason"].startswith("Endpoints default/web are not read: add EndpointSlices")
    write(tmp_path / "b.yaml", endpoint_slice())
    folder.load()
    assert warnings(logs) == []


def test_what_is_left_to_others_is_logged_with_the_reason(tmp_path, logs):
    unnamed = endpoint_slice(labels={"kubernetes.io/service-name": ""})
    write(
        tmp_path / "a.yaml",
        service("out", type="ExternalName"),
        endpoint_slice("names", addressType="FQDN"),
        unnamed,
    )
    folder = Folder(tmp_path)
    folder.load()
    folder.load()
    told = {entry["object"]: entry["reason"] for entry in logs if entry["event"] == messages.MANIFEST_LEFT}
    assert told.keys() == {"default/out", "default/names", "default/web-abc"}
    assert "type ExternalName" in told["default/out"]
    assert "addressType FQDN" in told["default/names"]
    assert "kubernetes.io/service-name" in told["default/web-abc"]


def test_back_to_the_same_content_after_a_broken_one(tmp_path, logs):
    path = tmp_path / "a.yaml"
    write(path, service("a"))
    folder = Folder(tmp_path)
    folder.load()
    path.write_text("[")
    folder.load()
    write(path, service("a"))
    assert folder.load() == []
    assert [e["event"] for e in logs if e["log_level"] == "info"] == [messages.MANIFEST_FILE_ACCEPTED]


def test_a_comment_is_not_a_cut_off_file(tmp_path):
    path = tmp_path / "a.yaml"
    write(path, service("a"))
    folder = Folder(tmp_path)
    folder.load()
    path.write_text("# nothing left\n")
    assert keys(folder.load()) == set()


def test_the_first_file_by_name_wins(tmp_path, logs):
    write(tmp_path / "b.yaml", service("web", clusterIP="10.96.0.2"))
    folder = Folder(tmp_path)
    assert ips(folder.load()) == {"default/web": "10.96.0.2"}
    write(tmp_path / "c.yaml", service("web", clusterIP="10.96.0.3"))
    assert folder.load() == []
    (line,) = warnings(logs)
    assert (line["file"], line["object"], line["err"]) == (
        "c.yaml",
        "default/web",
        "b.yaml has this object already",
    )
    write(tmp_path / "c.yaml", service("web", clusterIP="10.96.0.4"))
    assert folder.load() == []
    assert warnings(logs) == []
    write(tmp_path / "a.yaml", service("web", clusterIP="10.96.0.1"))
    assert ips(folder.load()) == {"default/web": "10.96.0.1"}
    assert {line["file"] for line in warnings(logs)} == {"b.yaml", "c.yaml"}
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "b.yaml").unlink()
    assert ips(folder.load()) == {"default/web": "10.96.0.4"}


def test_a_file_does_not_win_with_an_object_that_was_never_good(tmp_path):
    write(tmp_path / "a.yaml", BAD_PORT)
    write(tmp_path / "b.yaml", service("web", clusterIP="10.96.0.2"))
    folder = Folder(tmp_path)
    assert ips(folder.load()) == {"default/web": "10.96.0.2"}
    write(tmp_path / "a.yaml", service("web", clusterIP="10.96.0.1"))
    assert ips(folder.load()) == {"default/web": "10.96.0.1"}
    write(tmp_path / "a.yaml", BAD_PORT)
    assert folder.load() == []  # now it was good once


def test_a_headless_service_wins_over_its_namesake(tmp_path):
    write(tmp_path / "a.yaml", service("web", clusterIP="None"))
    write(tmp_path / "b.yaml", service("web"))
    assert ips(Folder(tmp_path).load()) == {}


def test_twice_in_one_file(tmp_path, logs):
    write(tmp_path / "a.yaml", service("web", clusterIP="10.96.0.1"), service("web", clusterIP="10.96.0.2"))
    assert ips(Folder(tmp_path).load()) == {"default/web": "10.96.0.1"}
    (line,) = warnings(logs)
    assert (line["document"], line["err"]) == (2, "the file has this object already")


def test_complaints_are_reported_once_for_each_version(tmp_path, logs):
    path = tmp_path / "a.yaml"
    write(path, service("web", externalIPs=["x"]))
    folder = Folder(tmp_path)
    assert ips(folder.load()) == {"default/web": "10.96.0.10"}
    (line,) = warnings(logs)
    assert (line["object"], line["err"]) == (
        "default/web",
        "spec.externalIPs: 'x' is not an IP address; left out",
    )
    write(path, service("web", externalIPs=["x"]), service("other"))
    folder.load()
    assert warnings(logs) == []


def test_a_file_that_cannot_be_read_keeps_its_objects(tmp_path, logs, monkeypatch):
    path = tmp_path / "a.yaml"
    write(path, service("a"))
    folder = Folder(tmp_path)
    folder.load()
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert folder.load() == []
    assert [line["err"] for line in warnings(logs)] == ["No such file or directory"]
    path.unlink()
    os.mkfifo(path)
    assert folder.load() == []
    assert [line["err"] for line in warnings(logs)] == ["not a regular file"]
    path.unlink()
    monkeypatch.setattr(manifest_file, "MAX_BYTES", 10)
    write(path, service("a"))
    assert folder.load() == []
    assert "are more than 10" in warnings(logs)[0]["err"]


def test_a_file_that_changes_while_it_is_read_is_left_for_later(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    write(path, service("a"))
    folder = Folder(tmp_path)
    folder.load()
    path.write_text("kind: List\nitems: []\n")
    read_file = manifest_file.read_file

    def busy(path):
        data = read_file(path)
        with path.open("a") as file:
            file.write("# more\n")
        return data

    with monkeypatch.context() as patch:
        patch.setattr(manifest_file, "read_file", busy)
        assert folder.load() == []
    assert keys(folder.load()) == set()


def test_settled_files_are_not_read_again(tmp_path, monkeypatch):
    write(tmp_path / "a.yaml", service("a"))
    os.utime(tmp_path / "a.yaml", (1, 1))
    folder = Folder(tmp_path)
    folder.load()
    monkeypatch.setattr(type(tmp_path), "read_bytes", None)
    assert folder.load() == []


@pytest.mark.parametrize("seconds", [0, 2])
def test_a_second_change_within_one_tick_of_the_clock_is_seen(tmp_path, monkeypatch, seconds):
    """Also where the process stands still after it has read the file."""
    path = tmp_path / "a.yaml"
    write(path, service("a", clusterIP="10.96.0.1"))
    before, reading = path.stat(), manifest_file.read_file
    clock = SimpleNamespace(now=before.st_mtime_ns)

    def read(file):
        clock.now += seconds * 10**9
        return reading(file)

    monkeypatch.setattr(manifest_file, "read_file", read)
    monkeypatch.setattr(manifest_file, "time", SimpleNamespace(time_ns=lambda: clock.now))
    folder = Folder(tmp_path)
    folder.load()
    path.write_text(path.read_text().replace("10.96.0.1", "10.96.0.2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ips(folder.load()) == {"default/a": "10.96.0.2"}


def test_a_folder_that_goes_away_changes_nothing(tmp_path, logs):
    place = tmp_path / "folder"
    place.mkdir()
    write(place / "a.yaml", service("a"))
    folder = Folder(place)
    folder.load()
    place.rename(tmp_path / "moved")
    assert folder.load() == folder.load() == []
    (line,) = warnings(logs)
    assert (line["event"], line["err"]) == (
        messages.MANIFESTS_UNAVAILABLE,
        "No such file or directory",
    )
    place.mkdir()
    write(place / "b.yaml", service("b"))
    assert keys(folder.load()) == {"default/b"}


def test_an_empty_mount_point_is_a_folder_that_went_away(tmp_path, logs, monkeypatch):
    write(tmp_path / "a.yaml", service("a"))
    folder = Folder(tmp_path)
    folder.load()
    (tmp_path / "a.yaml").unlink()
    monkeypatch.setattr(folder, "_device", -1)  # as if the files had been on another file system
    assert folder.load() == []
    assert "another file system" in warnings(logs)[0]["err"]


def test_importing_manifests_needs_no_kubernetes(tmp_path):
    program = (
        "import sys, ipvsproxy.kube.manifests;"
        "print(sorted({'kubernetes', 'urllib3', 'requests'} & sys.modules.keys()))"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# With the real watcher


class Watched:
    """A source that runs, and what it delivered."""

    def __init__(self, path):
        self.inbox = Inbox()
        self.source = ManifestSource(path)
        self.seen = {}
        self.source.start(self.inbox)

    def wait_for(self, *names, seconds=60):
        """Wait until exactly these Services are there."""
        until = time.monotonic() + seconds
        while set(self.seen.get(Kind.SERVICE, [""])) != {f"default/{name}" for name in names}:
            assert time.monotonic() < until, self.seen
            for event in self.inbox.take(0.1):
                self.seen[event.kind] = set(event.objects)


@pytest.fixture(name="watch")
def _watch(monkeypatch):
    monkeypatch.setattr(manifests, "LOOK_SECONDS", 0.1)
    sources = []

    def start(path):
        sources.append(Watched(path))
        return sources[-1]

    yield start
    for watched in sources:
        watched.source.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "manifests"]


def test_changes_are_noticed(tmp_path, watch, monkeypatch):
    monkeypatch.setattr(manifests, "LOOK_SECONDS", 3600.0)  # inotify must do it
    write(tmp_path / "a.yaml", service("a"))
    watched = watch(tmp_path)
    watched.wait_for("a")
    write(tmp_path / "b.yaml", service("b"))
    watched.wait_for("a", "b")
    (tmp_path / "a.yaml").write_text("")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("c")))
    watched.wait_for("b", "c")
    (tmp_path / "a.yaml").unlink()
    watched.wait_for("b")


def test_a_config_map_is_swapped_by_a_symlink(tmp_path, watch):
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        write(tmp_path / f"..{number}" / "a.yaml", service(f"v{number}"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    watched = watch(tmp_path)
    watched.wait_for("v1")
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    watched.wait_for("v2")


def test_a_folder_that_was_replaced_is_watched_anew(tmp_path, watch):
    place = tmp_path / "folder"
    place.mkdir()
    write(place / "a.yaml", service("a"))
    watched = watch(place)
    watched.wait_for("a")
    place.rename(tmp_path / "old")
    place.mkdir()
    write(place / "b.yaml", service("b"))
    watched.wait_for("b")
    write(place / "c.yaml", service("c"))
    watched.wait_for("b", "c")


def test_a_folder_that_cannot_be_read_at_the_start_is_the_end(tmp_path):
    inbox = Inbox()
    source = ManifestSource(tmp_path / "none")
    reason = f"manifests folder {tmp_path / 'none'}: No such file or directory"
    source.start(inbox)
    assert inbox.take(60) == [SourceFailed(reason)]
    assert source.check() == reason
    assert ManifestSource(tmp_path).check() == ""


def test_a_watch_that_fails_is_replaced_by_polling(tmp_path, watch, monkeypatch, logs):
    def broken(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(directory_watch, "_watch", broken)
    watched = watch(tmp_path)
    watched.wait_for()
    write(tmp_path / "a.yaml", service("a"))
    watched.wait_for("a")
    assert [entry["err"] for entry in logs if entry["event"] == messages.NO_INOTIFY] == ["Too many open files"]


def test_a_look_that_fails_ends_nothing_and_is_reported_once(tmp_path, watch, monkeypatch, logs):
    def broken(_):
        raise ValueError("a bug")

    watched = watch(tmp_path)
    watched.wait_for()
    load = Folder.load
    monkeypatch.setattr(Folder, "load", broken)
    for _ in range(2):
        (tmp_path / "a.yaml").touch()
        until = time.monotonic() + 60
        while not [entry for entry in logs if entry["log_level"] == "error"]:
            assert time.monotonic() < until
            time.sleep(0.01)
    monkeypatch.setattr(Folder, "load", load)
    write(tmp_path / "a.yaml", service("a"))
    watched.wait_for("a")
    said = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert said == [messages.MANIFESTS_CRASHED]


def test_changes_in_folders_within_are_seen(tmp_path, watch):
    (tmp_path / "prod").mkdir()
    write(tmp_path / "prod" / "a.yaml", service("a"))
    found = watch(tmp_path)
    found.wait_for("a")
    write(tmp_path / "prod" / "a.yaml", service("b"))
    found.wait_for("b")
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "c.yaml", service("c"))
    found.wait_for("b", "c")


def test_namespaces_and_pods_are_read_where_there_are_tenants(tmp_path):
    tenant = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "blue", "labels": {"a": "b"}}}
    pod = {
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "one", "namespace": "blue"},
        "spec": {"nodeName": "node1"}, "status": {"podIP": "10.244.1.7"},
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([tenant, pod]))
    found = {event.kind: event.objects for event in Folder(tmp_path, kinds(tenants=True)).load()}
    assert (set(found[Kind.NAMESPACE]), set(found[Kind.POD])) == ({"blue"}, {"blue/one"})
    assert {event.kind for event in Folder(tmp_path).load()} == {Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE}
