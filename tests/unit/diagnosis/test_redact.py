"""Nothing secret leaves a cluster in a bundle, and what is left can be read by programs."""

import json

import pytest

from ipvsproxy.diagnosis.redact import GONE, redacted, slimmed

JOSE = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nAAA\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"401 for {JOSE} again", f"401 for {GONE} again"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {GONE}"),
        (f"a\n{PEM}\nb", f"a\n{GONE}\nb"),
        ("-----BEGIN CERTIFICATE-----\ncut off", GONE),
        ("--master=https://me:pass@host:6443", f"--master=https://{GONE}@host:6443"),
        ("client-key-data: TUlJRQ==", f"client-key-data: {GONE}"),
        ('{"token": "abc", "x": 1}', f'{{"token": "{GONE}", "x": 1}}'),
        ("password=hunter2", f"password={GONE}"),
        ("https://host:6443/api", "https://host:6443/api"),
        ("the bearer of this Service", "the bearer of this Service"[:11] + f"{GONE} this Service"),
        ('{"sessionAffinity": "None"}', '{"sessionAffinity": "None"}'),
    ],
)
def test_texts_lose_what_looks_like_a_secret(text, expected):
    assert redacted(text) == expected


def test_json_stays_json():
    tree = {"token": "abc", "client-key-data": "def", "deep": [{"password": "x,y"}], "port": 80}
    found = json.loads(redacted(json.dumps(tree)))
    assert (found["token"], found["client-key-data"], found["port"]) == (GONE, GONE, 80)
    assert "abc" not in redacted(json.dumps(tree))


def test_objects_keep_only_what_the_proxy_reads():
    noise = {"kubectl.kubernetes.io/last-applied-configuration": "s3cret", "cloud.example.com/key": "s3cret"}
    service = {
        "metadata": {"name": "web", "namespace": "a", "managedFields": ["s3cret"],
                     "annotations": {**noise, "ipvsproxy.io/drain-timeout": "90s"}},
        "spec": {"clusterIP": "10.96.0.1"},
        "status": {"loadBalancer": {"ingress": []}, "conditions": ["s3cret"]},
    }  # fmt: skip
    found = slimmed("Service", service, "v1")
    assert "s3cret" not in json.dumps(found)
    assert found == {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "a", "annotations": {"ipvsproxy.io/drain-timeout": "90s"}},
        "spec": {"clusterIP": "10.96.0.1"}, "status": {"loadBalancer": {"ingress": []}},
    }  # fmt: skip


def test_nodes_and_slices():
    node = {"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.1.0/24", "providerID": "s3cret"},
            "status": {"addresses": [], "images": ["s3cret"]}}  # fmt: skip
    assert slimmed("Node", node, "v1")["spec"] == {"podCIDR": "10.244.1.0/24"}
    assert slimmed("Node", node, "v1")["status"] == {"addresses": []}
    piece = {"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [], "ports": [], "other": "s3cret"}
    found = slimmed("EndpointSlice", piece, "discovery.k8s.io/v1")
    assert found.keys() == {"apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"}
