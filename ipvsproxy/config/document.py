"""A configuration file into values by field, and back.

In: the bytes of a YAML or JSON file, the kind of its first document, and the rows of its fields. Out: the values
that are given, and complaints. A complaint (unknown field, key given twice, a second document) does not spoil a
file: kube-proxy decodes strictly, logs what only strict decoding rejects, and uses the rest (contract 1.3).
All other mistakes make the file invalid, and are reported at once, with line and field.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import yaml

from ipvsproxy.config.kinds import BadValue
from ipvsproxy.config.table import FIELD_ALIASES, KUBE_PROXY_FIELDS, OUR_FIELDS, Row
from ipvsproxy.config.yamltext import NULL, FirstDocument, Loader, Malformed, first_document

MOST_LIKENED = 20
"""So many fields that are not known are compared with those that are."""


class ConfigFileError(ValueError):
    """A file that cannot be used; the text is one line for each mistake."""


class Form(NamedTuple):
    """The kind and version a document must have, and which fields it may have."""

    api_version: str
    kind: str
    fields: Mapping[str, Row]
    aliases: Mapping[str, Row] = {}


KUBE_PROXY = Form("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration", KUBE_PROXY_FIELDS)
OURS = Form("ipvsproxy.io/v1alpha1", "IPVSProxyConfiguration", OUR_FIELDS, FIELD_ALIASES)


class Document(NamedTuple):
    """Values by field, without those that are null or absent; and what a strict reader would not have liked."""

    values: dict[str, Any]
    complaints: list[str]


def decode(data: bytes, form: Form) -> Document:
    """Read the first document of a file, which is the one that counts. Raises ConfigFileError."""
    try:
        found = first_document(data)
    except Malformed as error:
        raise ConfigFileError(str(error)) from None
    elsewhere = _elsewhere(found, form)
    if not isinstance(found.root, yaml.MappingNode):
        raise ConfigFileError(f"not a {form.kind}{elsewhere}")
    reader = _Reader(found.loader, form)
    reader.mapping(found.root, "")
    type_meta = (reader.values.pop("apiVersion", ""), reader.values.pop("kind", ""))
    if type_meta != (form.api_version, form.kind):
        wanted = f"not {form.api_version}, {form.kind}{elsewhere}"
        reader.errors.insert(0, f"apiVersion {type_meta[0]!r}, kind {type_meta[1]!r}: {wanted}")
    if reader.errors:
        raise ConfigFileError("\n".join(reader.errors))
    ignored = [f"{other} is ignored: only the first document of a file counts" for other in found.ignored]
    return Document(reader.values, reader.complaints + ignored)


def _elsewhere(found: FirstDocument, form: Form) -> str:
    """Return where else in the file a document of this form is, as the end of a sentence."""
    fits = (other for other in found.ignored if (other.api_version, other.kind) == (form.api_version, form.kind))
    other = next(fits, None)
    return f"; {other} is one, but only the first document of a file counts" if other else ""


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text that `yamltext` would not read as one, such as y."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


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
        for key, _ in node.value:
            path = _path(prefix, key)
            if path in seen:
                self._note(self.complaints, key, path, "given twice, the last one counts")
            seen.add(path)
        try:
            self._loader.flatten_mapping(node)  # what `<<` merges stands before what is given here
        except yaml.MarkedYAMLError as error:
            self._note(self.errors, node, f"{prefix}<<", _problem(error))
        for path, (key, value) in {_path(prefix, key): (key, value) for key, value in node.value}.items():
            self._field(path, key, value)

    def _field(self, path: str, key: yaml.Node, node: yaml.Node) -> None:
        row = self._form.fields.get(path)
        renamed = self._form.aliases.get(path)
        if node.tag == NULL:
            return
        if row is not None:
            self._value(path, row, node)
        elif renamed is not None:
            self._note(self.complaints, key, path, f"deprecated, use {renamed.field}")
            if renamed.field not in self.values:
                self._value(renamed.field, renamed, node)
        elif path in ("apiVersion", "kind"):
            self.values[path] = node.value if isinstance(node, yaml.ScalarNode) else "?"
        elif path not in self._inner:
            self._note(self.complaints, key, path, f"unknown field{self._like(path)}")
        elif isinstance(node, yaml.MappingNode):
            self.mapping(node, f"{path}.")
        else:
            self._note(self.errors, node, path, "is not a mapping")

    def _like(self, path: str) -> str:
        """Return the field that may have been meant: names have upper and lower case, as in kube-proxy."""
        if len(self.complaints) >= MOST_LIKENED:
            return ""  # a comparison with all names costs a thousand times what reading a field does
        names = {field.lower(): field for field in self._form.fields}
        like = get_close_matches(path.lower()[:100], names, 1, 0.8)
        return f"; did you mean {names[like[0]]}?" if like else ""

    def _value(self, path: str, row: Row, node: yaml.Node) -> None:
        try:
            self.values[path] = row.kind.decode(self._loader.construct_object(node, deep=True))
        except BadValue as error:
            self._note(self.errors, node, path, " ".join(str(error).split()))
        except yaml.MarkedYAMLError as error:
            self._note(self.errors, node, path, _problem(error))
        except (ValueError, LookupError, TypeError, AttributeError):  # a tag whose text is none of its kind
            self._note(self.errors, node, path, f"has the tag {node.tag}, and is none")

    def _note(self, where: list[str], node: yaml.Node, path: str, message: str) -> None:
        where.append(f"line {node.start_mark.line + 1}: {self._form.kind}.{path}: {message}")


def _path(prefix: str, key: yaml.Node) -> str:
    return f"{prefix}{key.value}" if isinstance(key, yaml.ScalarNode) else f"{prefix}?"


def _problem(error: yaml.MarkedYAMLError) -> str:
    return " ".join(str(error.problem or error.context).split())


def tree(values: Mapping[str, Any], form: Form = KUBE_PROXY) -> dict[str, Any]:
    """Return a document of a form as nested mappings, the way it would be written in JSON."""
    root: dict[str, Any] = {"apiVersion": form.api_version, "kind": form.kind}
    for field, row in form.fields.items():
        *inner, last = field.split(".")
        place = root
        for name in inner:
            place = place.setdefault(name, {})
        value = row.kind.encode(values[row.key])
        place[last] = value.copy() if isinstance(value, list | dict) else value
    return root


def text(values: Mapping[str, Any]) -> str:
    """Return a KubeProxyConfiguration as YAML that `decode` reads again."""
    written: str = yaml.dump(tree(values), Dumper=_Dumper, sort_keys=True, allow_unicode=True)
    return written
