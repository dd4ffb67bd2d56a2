"""Write the image's bill of materials, CycloneDX 1.6 in JSON, to standard output.

    sbom.py REPORT... <DPKG

Each REPORT is what `pip install --report` wrote: with it come the names, versions and hashes of the very files
that were installed. DPKG is what `dpkg-query --show --showformat` printed in FORMAT. Needs Python's own library
alone, since `install.sh` runs it in the image. The same packages give the same text: it has no time stamp.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

FORMAT = "${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n"
OWN = "ipvsproxy"
RELEASE = pathlib.Path("/etc/os-release")

Component = dict[str, Any]


def of_report(report: dict[str, Any]) -> Iterator[Component]:
    """Yield a component for each package that pip installed."""
    for item in report["install"]:
        metadata = item["metadata"]
        name, version = re.sub("[-_.]+", "-", metadata["name"]).lower(), metadata["version"]
        purl = f"pkg:pypi/{quote(name)}@{quote(version)}"
        found: Component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest:
            found["hashes"] = [{"alg": "SHA-256", "content": digest}]
        if "license_expression" in metadata:
            found["licenses"] = [{"expression": metadata["license_expression"]}]
        yield found


def of_dpkg(lines: Iterable[str], distribution: str) -> Iterator[Component]:
    """Yield a component for each package of the distribution, such as "debian-13"."""
    vendor = distribution.partition("-")[0]
    for line in lines:
        name, version, architecture, source, source_version = line.rstrip("\n").split("\t")
        where = f"arch={architecture}&distro={distribution}"
        if (source, source_version) != (name, version):
            where += f"&upstream={quote(f'{source}@{source_version}', safe='')}"
        purl = f"pkg:deb/{vendor}/{quote(name)}@{quote(version, safe='')}?{where}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def distribution_of(text: str) -> str:
    """Return ID and VERSION_ID of an os-release file, with a dash."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return "-".join(found[name].strip('"') for name in ("ID", "VERSION_ID"))


def bill(components: Iterable[Component]) -> dict[str, Any]:
    """Return the document. The project itself is what it describes."""
    parts = sorted(components, key=lambda found: str(found["purl"]))
    own = next(found for found in parts if found["name"] == OWN)
    parts.remove(own)
    named = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([own, *parts]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{named}",
        "version": 1,
        "metadata": {"component": own | {"type": "container"}},
        "components": parts,
    }


def main(reports: Sequence[str]) -> None:
    """Read and write."""
    python = [part for name in reports for part in of_report(json.loads(pathlib.Path(name).read_text()))]
    debian = of_dpkg(sys.stdin, distribution_of(RELEASE.read_text()))
    print(json.dumps(bill([*python, *debian]), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
