"""Files as people have them, in folders within the folder, serve real connections."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.conformance.forked import ForkedProxy
from tests.conformance.proxy import Zygote
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder
from tests.lab.probe import ProbeQuestion, probe_many

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

# Nothing that the API server would fill in: no protocol, no port name, no namespace, no conditions.
BARE = """
kind: Service
apiVersion: v1
metadata: {{name: bare}}
spec: {{clusterIP: 10.96.7.7, ports: [{{port: 5432, targetPort: 8080}}]}}
--- # a broken document between two good ones
{{{{ .Values.more }}}}
---
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {{name: bare-a, labels: {{kubernetes.io/service-name: bare}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [{address}]}}]
"""


def test_bare_objects_and_texts_of_windows_are_served(lab: Lab, zygote: Zygote, tmp_path: pathlib.Path) -> None:
    folder, pod = ManifestFolder(tmp_path), lab.pods[0]
    lab.responder.listen(pod, 8080)
    folder.write_nodes(lab)
    inner = tmp_path / "namespaces" / "default"
    inner.mkdir(parents=True)
    (inner / "bare.YML").write_text(BARE.format(address=pod.ipv4), newline="\r\n")
    metadata = {"name": "shell-a", "namespace": "prod", "labels": {"kubernetes.io/service-name": "shell"}}
    objects = [
        {"kind": "Service", "apiVersion": "v1", "metadata": {"name": "shell", "namespace": "prod"},
         "spec": {"clusterIP": "10.96.7.8", "ports": [{"name": "http", "port": 80}]}},
        {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "addressType": "IPv4",
         "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": [pod.ipv4]}]},
    ]  # fmt: skip
    text = "\r\n".join(json.dumps(found, indent=2) for found in objects)
    (inner / "powershell.json").write_bytes(text.encode("utf-16"))
    ForkedProxy(zygote, lab, lab.nodes[0], tmp_path).started()
    asked = [
        ProbeQuestion(asker.netns, address, number)
        for asker in (lab.pods[1], lab.nodes[0])
        for address, number in (("10.96.7.7", 5432), ("10.96.7.8", 80))
    ]
    assert [result.name for result in probe_many(asked)] == [pod.name] * len(asked)
