"""A configuration file into values by field, and back.

In: the bytes of one YAML or JSON document, its kind, and the rows of its fields. Out: the values that are given,
and complaints. A complaint (unknown field, key given twice) does not spoil a file: kube-proxy decodes strictly,
logs what only strictness minds, and goes on with the rest (contract 1.3). Everything else does, and all of
it is said at once, with line and field.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from ipvsproxy.config.kinds import BadValue
from ipvsproxy.config.table import KUBE_PROXY_FIELDS, OUR_FIELDS, Row


class Unusable(ValueError):
    """A file that cannot be used; the text is one line for each mistake."""


class Form(NamedTuple):
    """What a document must say that it is, and which fields it may have."""

    api_version: str
    kind: str
    fields: Mapping[str, Row]


KUBE_PROXY = Form("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration", KUBE_PROXY_FIELDS)
OURS = Form("ipvsproxy.io/v1alpha1", "IPVSProxyConfiguration", OUR_FIELDS)


class Document(NamedTuple):
    """Values by field, without those that are null or absent; and what a strict reader would not have liked."""

    values: dict[str, Any]
    complaints: list[str]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: a date is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def decode(data: bytes, form: Form) -> Document:
    """Read a document. Raises Unusable."""
    try:
        loader = _Loader(data)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise Unusable(f"{line}{error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Unusable(" ".join(str(error).split())) from None
    if not isinstance(root, yaml.MappingNode):
        raise Unusable(f"not a {form.kind}")
    reader = _Reader(loader, form)
    reader.mapping(root, "")
    found = (reader.values.pop("apiVersion", ""), reader.values.pop("kind", ""))
    if found != (form.api_version, form.kind):
        reader.errors.insert(0, f"apiVersion {found[0]!r}, kind {found[1]!r}: not {form.api_version}, {form.kind}")
    if reader.errors:
        raise Unusable("\n".join(reader.errors))
    return Document(reader.values, reader.complaints)


class _Reader:
    """One walk through a document."""

    def __init__(self, loader: Any, form: Form) -> None:
        self.values: dict[str, Any] = {}
        self.complaints: list[str] = []
        self.errors: list[str] = []
        self._loader = loader
        self._form = form
        self._inner = {field[:at] for field in form.fields for at, sign in enumerate(field) if sign == "."}

    def mapping(self, node: yaml.MappingNode, prefix: str) -> None:
        """Take all fields of one mapping; of a key that is given twice the last one counts."""
        seen = set()
        for key_node, value_node in node.value:
            path = f"{prefix}{key_node.value}" if isinstance(key_node, yaml.ScalarNode) else f"{prefix}?"
            if path in seen:
                self._note(self.complaints, key_node, path, "given twice, the last one counts")
            seen.add(path)
            self._field(path, key_node, value_node)

    def _field(self, path: str, key: yaml.Node, node: yaml.Node) -> None:
        row = self._form.fields.get(path)
        if node.tag == "tag:yaml.org,2002:null":
            self.values.pop(path, None)
        elif row is not None:
            self._value(path, row, node)
        elif path in ("apiVersion", "kind"):
            self.values[path] = node.value
        elif path not in self._inner:
            self._note(self.complaints, key, path, "unknown field")
        elif isinstance(node, yaml.MappingNode):
            self.mapping(node, f"{path}.")
        else:
            self._note(self.errors, node, path, "is not a mapping")

    def _value(self, path: str, row: Row, node: yaml.Node) -> None:
        try:
            self.values[path] = row.kind.decode(self._loader.construct_object(node, deep=True))
        except (BadValue, yaml.constructor.ConstructorError) as error:
            self._note(self.errors, node, path, " ".join(str(error).split()))

    def _note(self, where: list[str], node: yaml.Node, path: str, words: str) -> None:
        where.append(f"line {node.start_mark.line + 1}: {self._form.kind}.{path}: {words}")


def tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a KubeProxyConfiguration as nested mappings, the way it would be written in JSON."""
    root: dict[str, Any] = {"apiVersion": KUBE_PROXY.api_version, "kind": KUBE_PROXY.kind}
    for field, row in KUBE_PROXY_FIELDS.items():
        *inner, last = field.split(".")
        place = root
        for name in inner:
            place = place.setdefault(name, {})
        value = row.kind.encode(values[field])
        place[last] = value.copy() if isinstance(value, list | dict) else value
    return root


def text(values: Mapping[str, Any]) -> str:
    """Return a KubeProxyConfiguration as YAML that `decode` reads again."""
    written: str = yaml.safe_dump(tree(values), sort_keys=True, allow_unicode=True)
    return written
