"""What fuzzing has found, and files from the field: each input again, with its work and memory counted.

`make fuzz` looks for more. libnftables and the kernel take part there alone.
"""

import json

import bounds
import msgspec
import pytest
import targets

import fuzz

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
def test_a_file_from_the_field_breaks_nothing_whoever_is_given_it(path, name):
    targets.TARGETS[name](path.read_bytes())


def test_work_and_memory_above_the_bound_are_found():
    def slow(data):
        return sum(0 for _ in range(len(data) ** 2))

    def big(data):
        return len([bytes(1 << 16) for _ in range(len(data))]) * 0

    assert "instructions" in bounds.over("decoding", slow, bytes(400))
    assert "bytes of memory" in bounds.over("decoding", big, bytes(300))
    assert bounds.over("decoding", len, bytes(300)) == ""


def test_bytes_for_netlink_that_say_something_else_are_found(monkeypatch):
    real = targets.ipvs_wire.encode

    def wrong(family, step, number):
        other = msgspec.structs.replace(step.key, port=step.key.port ^ 1)
        return real(family, msgspec.structs.replace(step, key=other), number)

    monkeypatch.setattr(targets.ipvs_wire, "encode", wrong)
    data = (fuzz.CORPUS / "objects/cluster").read_bytes()
    with pytest.raises(AssertionError):
        targets.objects(data)


def test_a_mutation_keeps_the_form():
    import mutate

    data = (fuzz.CORPUS / "objects/cluster").read_bytes()
    mutant = mutate.custom("objects", lambda *_: b"")
    made = {mutant(data, 1 << 20, seed) for seed in range(40)}
    assert len(made) > 20
    assert all(json.loads(text) is not None for text in made if text)
