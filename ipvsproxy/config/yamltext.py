"""The first document of a YAML or JSON file, read as Go programs of Kubernetes read their configuration files.

In: bytes, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Out: the nodes of the first document, and
a description of the other documents, which do not count there either (sigs.k8s.io/yaml hands one document to its
decoder). Scalars mean what they mean there: `y` is a boolean, 010 is octal, 1e3 is a number, a date and 10:20 are
texts. `Malformed` names line, column and character.
"""

import codecs
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

MAX_DEPTH = 100
LEAST_NODES, NODES_FACTOR = 1000, 10
"""A document whose aliases, written out, would make it larger than this is refused."""
ENCODINGS = (  # UTF-32 first: its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LINE_END = "\n"
TAG = "tag:yaml.org,2002:"
NULL = f"{TAG}null"
BOOLEANS = {
    **dict.fromkeys(("y", "yes", "true", "on"), True),
    **dict.fromkeys(("n", "no", "false", "off"), False),
}


class Malformed(ValueError):
    """A file that is no YAML; the text is one line and states where."""


class FirstDocument(NamedTuple):
    """The root of the first document, None for an empty one; its loader; and the documents that do not count."""

    root: yaml.Node | None
    loader: Any
    ignored: tuple["Ignored", ...]


class Ignored(NamedTuple):
    """A document after the first one: its number, its line, and the kind that it has."""

    number: int
    line: int
    api_version: str
    kind: str

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.api_version, self.kind)))
        return f"line {self.line}: document {self.number}" + (f" ({what})" if what else "")


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 with the scalars of Go's yaml.v2, but for dates, which stay texts."""

    bool_values = BOOLEANS
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as in PyYAML


def _resolve(kind: str, pattern: str, first: str) -> None:
    Loader.add_implicit_resolver(f"{TAG}{kind}", re.compile(f"(?:{pattern})$"), list(first))


_words = "|".join(form for word in BOOLEANS for form in dict.fromkeys((word, word.capitalize(), word.upper())))
_resolve("bool", _words, "yYnNtTfFoO")
_resolve("int", r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
_resolve("merge", "<<", "<")
Loader.add_implicit_resolver(NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    octal = re.fullmatch(r"([-+]?)0([0-7]+)", text)
    return int(octal[1] + octal[2], 8) if octal else int(text, 0)


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


Loader.add_constructor(f"{TAG}int", _integer)
Loader.add_constructor(f"{TAG}float", _float)


def first_document(data: bytes) -> FirstDocument:
    """Return the first document of a file. Raises Malformed."""
    text = _text(data)
    try:
        return _compose(text)
    except Malformed:
        if not text.lstrip().startswith("{"):
            raise
        again = _as_yaml(text)
        if again is None:
            raise
        return _compose(again)


def _as_yaml(text: str) -> str | None:
    """Return JSON in a form that every YAML parser reads: JSON knows escapes that libyaml does not.

    None where there is none: half of a surrogate pair is no character.
    """
    try:
        return json.dumps(json.loads(text), ensure_ascii=False).encode().decode()
    except (ValueError, RecursionError):
        return None


def _text(data: bytes) -> str:
    # UTF-16 without a mark has zeros, with which a file in UTF-8 would be refused in any case.
    bare = "utf-16-be" if data[:1] == b"\0" else "utf-16-le" if data[1:2] == b"\0" else "utf-8"
    encoding = next((name for mark, name in ENCODINGS if data.startswith(mark)), bare)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Malformed(f"line {line}: byte 0x{data[error.start]:02x} is not {encoding.upper()[:6]}") from None
    wrong = FORBIDDEN.search(text)
    if wrong:
        raise Malformed(f"{_place(text, wrong.start())}: control characters are not allowed, found {wrong[0]!a}")
    return text


def _compose(text: str) -> FirstDocument:
    loader = Loader(text)
    try:
        root = loader.get_node() if loader.check_node() else None
    except yaml.MarkedYAMLError as error:
        raise Malformed(_reason(text, error)) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise Malformed(" ".join(str(error).split())) from None
    if root is not None:
        _measure(root)
    return FirstDocument(root, loader, tuple(_others(loader)))


def _others(loader: Any) -> Iterator[Ignored]:
    """Yield the other documents that are not empty; one that is no YAML is the last one."""
    number = 1
    try:
        while loader.check_node():
            node, number = loader.get_node(), number + 1
            if node.tag != NULL:
                fields = _fields(node)
                yield Ignored(
                    number, node.start_mark.line + 1, fields.get("apiVersion", ""), fields.get("kind", "")
                )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield Ignored(number + 1, mark.line + 1 if mark else 0, "", "")
    except (yaml.YAMLError, RecursionError):
        yield Ignored(number + 1, 0, "", "")


def _fields(node: yaml.Node) -> dict[str, str]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return {
        key.value: value.value
        for key, value in pairs
        if isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)
    }


def _measure(root: yaml.Node) -> None:
    """Refuse what would be large, or endless, with its aliases written out."""
    sizes: dict[int, int] = {}
    if _size(root, sizes, 0) > max(LEAST_NODES, NODES_FACTOR * len(sizes)):
        raise Malformed("aliases make the document much larger than it is")


def _size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    if depth > MAX_DEPTH:
        raise Malformed(f"line {node.start_mark.line + 1}: nested more deeply than {MAX_DEPTH} levels")
    known = sizes.get(id(node))
    if known is not None:
        return known
    size = 1
    if not isinstance(node, yaml.ScalarNode):
        for part in node.value:
            size += sum(_size(inner, sizes, depth + 1) for inner in (part if isinstance(part, tuple) else (part,)))
    sizes[id(node)] = size
    return size


def _reason(text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    problem = str(error.problem or error.context or "not YAML")
    if mark is None:
        return problem
    return f"{_place(text, mark.index)}: {problem}, at {_character(text, mark.index)}"


def _place(text: str, index: int) -> str:
    before = text[:index].replace("\r\n", "\n").replace("\r", "\n")
    return f"line {before.count(LINE_END) + 1}, column {len(before) - before.rfind(LINE_END)}"


def _character(text: str, index: int) -> str:
    character = text[index : index + 1]
    if not character:
        return "the end of the file"
    if character in "\r\n":
        return "the end of the line"
    name = unicodedata.name(character, "").lower() or {"\t": "tab"}.get(character, "")
    return (
        f"{character!a} ({name})"
        if name and not (character.isalnum() and character.isascii())
        else repr(character)
    )
