"""What a support bundle holds, from what was seen; the objects in it can be read again as they were."""

import io
import json
import pathlib
import tarfile

import pytest

from ipvsproxy.commands import bundle
from ipvsproxy.commands.bundle import contents, kernel_lines, objects_list, pack, write
from ipvsproxy.commands.survey import SurveyResult
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import Api, Facts, from_json
from ipvsproxy.kube.documents import read
from ipvsproxy.kube.once import Objects, read_objects
from ipvsproxy.plan.state import (
    Destination,
    FrontendKey,
    KernelState,
    ServerAttributes,
    ServerState,
    Vip,
    VipForm,
)
from tests.support.build import weighted
from tests.support.elements import element

EXAMPLES = pathlib.Path(__file__).parents[3] / "examples"
JOSE = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
KERNEL = KernelState(
    {
        FrontendKey(bytes([10, 96, 0, 1]), 6, 80): ServerState(
            ServerAttributes("rr", 0, 0), weighted({Destination(bytes(4), 80): 1})
        )
    },
    {Vip(bytes([10, 96, 0, 1]), VipForm.ADDRESS)},
    {element("frontends4", "10.96.0.1 . tcp . 80"): "accept"},
)


def examples():
    return read_objects(Config("node1", manifests=EXAMPLES))


def again(objects):
    """The objects, read from the bundle's file as `plan --from` does."""
    found = Objects("a bundle")
    for item in read("objects.json", json.dumps(objects_list(objects)).encode()).items:
        found.add(next(kind for kind in found.items if kind == item.kind), item.body)
    return found


def test_objects_are_the_same_when_they_are_read_again():
    objects = examples()
    assert list(objects.listed()) == list(again(objects).listed())
    assert sum(len(listed.objects) for listed in objects.listed()) > 10


def test_external_names_are_seen_in_both_forms():
    objects = examples()
    assert list(objects.external_names()) == list(again(objects).external_names()) != []


def test_the_archive(tmp_path):
    log = tmp_path / "proxy.log"
    log.write_text(f"401 for {JOSE}\n")
    config = Config("node1", document={"kind": "KubeProxyConfiguration", "clientConnection": {"burst": 10}},
                    flags=(("master", "https://me:pass@host"),), healthz_bind_address=None,
                    metrics_bind_address=None)  # fmt: skip
    facts = Facts(api=Api("the folder x"), drift=("VIP 10.96.0.1 is missing",))
    files = dict(contents(SurveyResult(facts, examples(), None, KERNEL), config, log))
    target = tmp_path / "bundle.tar.gz"
    write(target, "node1", files, 0)
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        read = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
    assert read.keys() == {
        f"node1/{name}" for name in (
            "README.txt", "findings.txt", "findings.json", "facts.json", "objects.json", "kernel.txt", "drift.txt",
            "configuration.yaml", "flags.txt", "logs/proxy.log",
        )
    }  # fmt: skip
    assert from_json(read["node1/facts.json"]) == facts
    assert "VIP 10.96.0.1 is missing" in read["node1/findings.txt"]
    assert "\x1b" not in read["node1/findings.txt"]
    assert "burst: 10" in read["node1/configuration.yaml"]
    everything = "".join(read.values())
    assert JOSE not in everything
    assert "pass@" not in everything


def test_the_kernel_in_lines():
    assert list(kernel_lines(KERNEL)) == [
        "10.96.0.1:80/TCP rr flags 0x0 timeout 0",
        "  -> 0.0.0.0:80 weight 1",
        "VIP 10.96.0.1 address",
        "frontends4 { 10.96.0.1 . tcp . 80 : accept }",
    ]


def test_a_log_that_cannot_be_read_affects_nothing_else(tmp_path):
    config = Config("node1", healthz_bind_address=None, metrics_bind_address=None)
    files = dict(contents(SurveyResult(Facts(), None, None, None), config, tmp_path / "gone.log"))
    assert files["logs/gone.log"] == "cannot be read: No such file or directory\n"


def test_where_no_log_is_the_bundle_reports_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "LOG_FOLDER", tmp_path)
    monkeypatch.setattr(bundle, "NAMESPACE", tmp_path / "namespace")
    (tmp_path / "namespace").write_text("proxies")
    config = Config("node1", healthz_bind_address=None, metrics_bind_address=None)
    files = dict(contents(SurveyResult(Facts(), None, None, None), config, None))
    text = files["logs/how-to-get-them.txt"]
    assert "kubectl -n proxies logs" in text
    assert "spec.nodeName=node1" in text
    (tmp_path / "ipvsproxy-x.log").write_text("a line")
    assert "logs/how-to-get-them.txt" not in dict(contents(SurveyResult(Facts(), None, None, None), config, None))


def test_a_file_that_is_there_is_not_written_to(tmp_path):
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "bundle.tar.gz").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write(tmp_path / "bundle.tar.gz", "node1", {"a.txt": "text"}, 0)
    assert (tmp_path / "victim").read_text() == "theirs"


def test_into_a_pipe():
    raw = io.BytesIO()
    pack(raw, "node1", {"a.txt": "text"}, 0)
    with tarfile.open(fileobj=io.BytesIO(raw.getvalue())) as archive:
        assert archive.extractfile("node1/a.txt").read() == b"text"
