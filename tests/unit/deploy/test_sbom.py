"""The image's bill of materials, from what pip and dpkg say."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

REPO = pathlib.Path(__file__).resolve().parents[3]
SCRIPT = REPO / "deploy/sbom.py"
DIGEST = "ab" * 32
DPKG = """\
libc6	2.41-12+deb13u1	amd64	glibc	2.41-12+deb13u1
libssl3t64	3.5.1-1	amd64	openssl	3.5.1-1
zlib1g	1:1.3	amd64	zlib1g	1:1.3
"""

_spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
sbom = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sbom)


def report(name: str, version: str, **metadata: str) -> dict[str, object]:
    download = {"url": "file:///build/x.whl", "archive_info": {"hashes": {"sha256": DIGEST}}}
    return {"install": [{"metadata": {"name": name, "version": version, **metadata}, "download_info": download}]}


def test_a_package_of_pip_has_the_hash_of_its_file_and_no_address_of_where_it_came_from() -> None:
    (found,) = sbom.of_report(report("Prometheus_Client", "0.26.0", license_expression="Apache-2.0"))
    assert found == {
        "type": "library",
        "bom-ref": "pkg:pypi/prometheus-client@0.26.0",
        "name": "prometheus-client",
        "version": "0.26.0",
        "purl": "pkg:pypi/prometheus-client@0.26.0",
        "hashes": [{"alg": "SHA-256", "content": DIGEST}],
        "licenses": [{"expression": "Apache-2.0"}],
    }


def test_a_package_of_debian_names_its_source_since_advisories_do() -> None:
    purls = [found["purl"] for found in sbom.of_dpkg(DPKG.splitlines(), "debian-13")]
    assert purls == [
        "pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64&distro=debian-13&upstream=glibc%402.41-12%2Bdeb13u1",
        "pkg:deb/debian/libssl3t64@3.5.1-1?arch=amd64&distro=debian-13&upstream=openssl%403.5.1-1",
        "pkg:deb/debian/zlib1g@1%3A1.3?arch=amd64&distro=debian-13",
    ]


def test_the_distribution_is_read_with_or_without_quotes() -> None:
    assert sbom.distribution_of('PRETTY_NAME="Debian 13"\nVERSION_ID="13"\nID=debian\n') == "debian-13"


def test_the_same_packages_give_the_same_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "own").write_text(json.dumps(report("ipvsproxy", "0.1.0")))
    (tmp_path / "locked").write_text(json.dumps(report("msgspec", "0.23.0")))
    texts = {
        subprocess.run(
            [sys.executable, SCRIPT, *(tmp_path / name for name in order)],
            input=DPKG,
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for order in (("own", "locked"), ("locked", "own"))
    }
    assert len(texts) == 1
    document = json.loads(texts.pop())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "ipvsproxy"
    assert [part["name"] for part in document["components"]] == ["libc6", "libssl3t64", "zlib1g", "msgspec"]
    assert "timestamp" not in document["metadata"]
