"""What fuzzing has found, and files from the field: each input again, with its work and memory counted.

`make fuzz` looks for more. libnftables and the kernel take part there alone.
"""

import json

import msgspec
import pytest

from tests.fuzz import bounds, targets
from tests.fuzz import run as fuzz
from tests.support import hostile

FILES = [path for path in sorted(fuzz.CORPUS.rglob("*")) if path.is_file()]
FIELD = [path for path in sorted(fuzz.FIELD.rglob("*")) if path.is_file()]


def test_each_target_has_a_corpus_and_a_bound():
    assert sorted(targets.TARGETS) == sorted(bounds.WORK) == sorted(fuzz.NAMES)
    assert {path.parent.name for path in FILES} == set(targets.TARGETS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_of_the_corpus_breaks_nothing_and_costs_what_its_size_allows(path):
    assert bounds.over(path.parent.name, targets.TARGETS[path.parent.name], path.read_bytes()) == ""


@pytest.mark.parametrize("name", ["manifests", "configuration", "kubeconfig"])
@pytest.mark.parametrize("path", FIELD, ids=lambda path: path.name)
def test_a_file_from_the_field_breaks_no_reader(path, name):
    targets.TARGETS[name](path.read_bytes())


NODES = [f"10.244.{number // 250}.{number % 250}" for number in range(60)]
RANGES = [f"10.{number // 250}.{number % 250}.0/24" for number in range(600)]
CONFIG = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
MANY = {
    "configuration-unknown fields": CONFIG + "".join(f"a{number}: 1\n" for number in range(1500)),
    "configuration-ranges": f"{CONFIG}nodePortAddresses: [{','.join(RANGES)}]\n",
    "configuration-documents": "---\na: 1\n" * 2000,
    "connections-headers": "GET / HTTP/1.1\r\n" + "".join(f"a{number}: 1\r\n" for number in range(90)) + "\r\n",
    "connections-parameters": f"GET /?{'&'.join(map(str, range(3000)))} HTTP/1.1\r\n\r\n",
    "decoding-endpoints that are none": json.dumps(hostile.endpoint_slice("a", "b", *["x"] * 100)),
    "decoding-ranges": json.dumps(hostile.service("a", "10.96.0.1", loadBalancerSourceRanges=RANGES)),
    "kubeconfig-users": json.dumps({"users": [{"name": f"u{number}", "user": {}} for number in range(500)]}),
    "kubeconfig-lists": "[" * 90 + "1," * 5000 + "]" * 90,
    "manifests-empty objects": "{}\n" * 5000,
    "manifests-documents": "---\na: 1\n" * 2000,
    "manifests-a list": "- {}\n" * 3000,
    "objects-ranges": json.dumps([hostile.service("s", "10.96.1.1", loadBalancerSourceRanges=RANGES)]),
    "objects-endpoints": json.dumps(
        [hostile.service("s", "10.96.1.1"), hostile.endpoint_slice("s1", "s", *NODES)]
    ),
}


@pytest.mark.parametrize("what", MANY)
def test_an_input_of_many_small_things_costs_what_its_size_allows(what):
    name = what.partition("-")[0]
    assert bounds.over(name, targets.TARGETS[name], MANY[what].encode()) == ""


def test_work_and_memory_above_the_bound_are_found():
    def slow(data):
        return sum(0 for _ in range(len(data) ** 2))

    def big(data):
        return len([bytes(1 << 16) for _ in range(len(data))]) * 0

    assert "instructions" in bounds.over("decoding", slow, bytes(400))
    assert "bytes of memory" in bounds.over("decoding", big, bytes(300))
    assert bounds.over("decoding", len, bytes(300)) == ""


def test_bytes_for_netlink_that_mean_something_else_are_found(monkeypatch):
    real = targets.ipvs.encode

    def wrong(family, step, number):
        other = msgspec.structs.replace(step.key, port=step.key.port ^ 1)
        return real(family, msgspec.structs.replace(step, key=other), number)

    monkeypatch.setattr(targets.ipvs, "encode", wrong)
    data = (fuzz.CORPUS / "objects/cluster").read_bytes()
    with pytest.raises(AssertionError):
        targets.objects(data)


def test_a_mutation_keeps_the_form():
    from tests.fuzz import mutate

    data = (fuzz.CORPUS / "objects/cluster").read_bytes()
    mutant = mutate.custom("objects", lambda *_: b"")
    made = {mutant(data, 1 << 20, seed) for seed in range(40)}
    assert len(made) > 20
    assert all(json.loads(text) is not None for text in made if text)
