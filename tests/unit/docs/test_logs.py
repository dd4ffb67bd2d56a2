"""Every log message at warning or error level is in docs/logs.md, and every message there is in the code."""

import ast
import re
from collections.abc import Iterator, Mapping

from ipvsproxy.base import messages
from tests.support import repository
from tests.support.repository import REPO

LEVELS = {"warning": "warning", "error": "error", "exception": "error", "critical": "error"}
EVERY_LEVEL = {**LEVELS, "info": "info", "debug": "debug"}
KEY = re.compile(r"[a-z][a-zA-Z0-9]*")
OF_STRUCTLOG = {"exc_info"}
ROW = re.compile(r"^\| `(.+?)` \| (warning|error) \| (.+) \| (.+) \|$", re.MULTILINE)
SENTENCES = re.compile(r"^\| sentences of `(ipvsproxy/\S+\.py)` \| (warning|error) \|", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """The calls of one module, each with the function it stands in."""

    def __init__(self, text: str):
        self.calls: list[tuple[ast.Call, Function | None]] = []
        self._collect(ast.parse(text), None)

    def _collect(self, node: ast.AST, within: Function | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                self.calls.append((child, within))
            self._collect(child, child if isinstance(child, Function) else within)

    def logged(self, levels: Mapping[str, str] = LEVELS) -> Iterator[tuple[str | None, str]]:
        """Every message with its level; None stands for a text that is no constant."""
        for call, within, level in self._lines(levels):
            for message in self._texts(call.args[0], within):
                yield message, level

    def all_keys(self) -> set[str]:
        """The keys of all lines at all levels, those aside that come from a dictionary."""
        return {key.arg for call, _, _ in self._lines(EVERY_LEVEL) for key in call.keywords if key.arg}

    def _lines(self, levels: Mapping[str, str]) -> Iterator[tuple[ast.Call, Function | None, str]]:
        for call, within in self.calls:
            function = call.func
            if not isinstance(function, ast.Attribute) or function.attr not in levels:
                continue
            if "log" in ast.unparse(function.value):
                yield call, within, levels[function.attr]

    def _texts(self, value: ast.expr, within: Function | None) -> set[str | None]:
        """The constants that an expression may be: its own, those assigned to it, those that callers give."""
        if isinstance(value, ast.Constant):
            return {value.value}
        if isinstance(value, ast.Attribute) and ast.unparse(value.value) == "messages":
            return {getattr(messages, value.attr)}
        if not isinstance(value, ast.Name) or within is None:
            return {None}
        assigned = [
            node.value
            for node in ast.walk(within)
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [value.id]
        ]
        parameters = [argument.arg for argument in within.args.args if argument.arg != "self"]
        given = self._given(within.name, parameters.index(value.id)) if value.id in parameters else []
        found = [(node, within) for node in assigned] + given
        return {text for node, place in found for text in self._texts(node, place)} or {None}

    def _given(self, name: str, position: int) -> list[tuple[ast.expr, Function | None]]:
        return [
            (call.args[position], within)
            for call, within in self.calls
            if ast.unparse(call.func).split(".")[-1] == name and len(call.args) > position
        ]


def modules() -> Iterator[Module]:
    yield from (Module(file.read_text()) for file in sorted((REPO / "ipvsproxy").rglob("*.py")))


def in_the_code() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Constant messages, and modules whose messages are sentences, each with the level."""
    messages, sentences = set(), set()
    for file in sorted((REPO / "ipvsproxy").rglob("*.py")):
        for message, level in Module(file.read_text()).logged():
            if message is None:
                sentences.add((str(file.relative_to(REPO)), level))
            else:
                messages.add((message, level))
    return messages, sentences


def documented() -> str:
    return (REPO / "docs/logs.md").read_text()


def test_every_message_is_documented_and_every_documented_message_exists():
    listed = [(message, level) for message, level, _, _ in ROW.findall(documented())]
    messages, _ = in_the_code()
    lacking, left = sorted(messages - set(listed)), sorted(set(listed) - messages)
    assert not lacking, f"add rows to docs/logs.md: {lacking}"
    assert not left, f"remove rows from docs/logs.md: {left}"
    assert len(listed) == len(set(listed))


def test_modules_that_log_whole_sentences_are_documented():
    assert set(SENTENCES.findall(documented())) == in_the_code()[1]


def test_each_row_reports_the_cause_and_what_to_do():
    for message, _, cause, advice in ROW.findall(documented()):
        assert cause.endswith("."), message
        assert advice.endswith("."), message


def test_messages_are_found_however_they_reach_the_log():
    text = """
class Reader:
    def first(self, key):
        self._log.warning("plain", key=key)
        words = "assigned"
        self._tell(words, key)
        self._tell("given", key)

    def _tell(self, message, key):
        self._log.error(message, key=key)

def other(reason):
    log.exception(f"{reason} happened")
    catalogue.append("not a message")
"""
    assert set(Module(text).logged()) == {
        ("plain", "warning"), ("assigned", "error"), ("given", "error"), (None, "error"),
    }  # fmt: skip


def test_messages_and_keys_have_the_form_of_kubernetes_guide():
    """The rules of its guide on structured logging that can be told from the text alone."""
    texts = {text for module in modules() for text, _ in module.logged(EVERY_LEVEL) if text}
    keys = {key for module in modules() for key in module.all_keys()} - OF_STRUCTLOG
    assert len(texts) > 100
    assert not sorted(text for text in texts if not text[0].isupper() or text[-1] in ".!")
    present = re.compile(r"\b(cannot|can not|trying again)\b")
    assert not sorted(filter(present.search, texts)), "the tense is the past: Could not ..., will retry"
    assert not sorted(key for key in keys if not KEY.fullmatch(key))
    assert "error" not in keys, "the key of an error is err"


def test_tests_import_messages_instead_of_quoting_them():
    logged = {text for module in modules() for text, _ in module.logged(EVERY_LEVEL) if text}
    quoted = {
        (str(file.relative_to(REPO)), node.value)
        for file in repository.files()
        if file.suffix == ".py" and file.is_relative_to(REPO / "tests")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in logged
    }
    assert not sorted(quoted), "make a constant of ipvsproxy/base/messages.py"


def test_every_constant_is_logged():
    logged = {text for module in modules() for text, _ in module.logged(EVERY_LEVEL) if text}
    assert {value for name, value in vars(messages).items() if name.isupper()} <= logged
