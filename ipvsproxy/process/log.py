"""Logs: one line per event on stderr, as text (klog) or as JSON, both in the form of kube-proxy's.

Verbosity follows kube-proxy's habit: 0 shows what changes and what fails, 1 every flag at the start, 4 and more
shows details (`debug`), how long each sync took among them. It may change while the process runs, and `--vmodule`
raises it for single files. Rules: contract 6.2.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, TextIO

import structlog
from structlog.processors import CallsiteParameter, CallsiteParameterAdder
from structlog.typing import EventDict, Processor

from ipvsproxy.config import Config, LogFormat

FLAGS_FROM = 1
DEBUG_FROM = 4
LETTERS = {"debug": "I", "info": "I", "warning": "W"}  # everything else is an E


class Verbosity:
    """How much is logged: in general, and in files whose names match a pattern; the first match counts."""

    def __init__(self) -> None:
        self.general = 0
        self.patterns: tuple[tuple[str, int], ...] = ()

    def of(self, file: str) -> int:
        """Return the verbosity in a file, which is named without its ending."""
        matches = (level for pattern, level in self.patterns if fnmatchcase(file, pattern))
        return max(self.general, next(matches, 0))


# Of the process, like the output it governs: loggers are made once and keep their processors.
verbosity = Verbosity()


class Logger(structlog.make_filtering_bound_logger(0)):  # type: ignore[misc]
    """Hides details before any work is done for them: the hot path has some."""

    def debug(self, event: str, *args: Any, **values: Any) -> None:
        """Log a detail, if details are wanted."""
        if verbosity.general >= DEBUG_FROM or verbosity.patterns:
            super().debug(event, *args, **values)


class Output:
    """Where lines go. A full disk or a reader that has gone loses lines, and affects nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0

    def write(self, text: str) -> None:
        """Write a line, or count it as lost; their number is written as soon as writing works again."""
        lost = self._lost
        note = f"{lost} log lines could not be written\n" if lost else ""
        try:
            self._stream.write(note + text)
            self._stream.flush()
        except (OSError, ValueError):
            self._lost += 1
        else:
            self._lost -= lost

    def flush(self) -> None:
        """Nothing is left to do."""


def configure(config: Config) -> None:
    """Set up structlog for the whole process."""
    verbosity.patterns = config.vmodule
    set_verbosity(config.verbosity)
    place = {CallsiteParameter.FILENAME, CallsiteParameter.LINENO}
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        CallsiteParameterAdder(place, additional_ignores=[__name__]),
        _hide_details,
        structlog.processors.format_exc_info,
        component_json if config.log_format is LogFormat.JSON else klog,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=Logger,
        logger_factory=structlog.WriteLoggerFactory(Output(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def quiet() -> None:
    """Log only warnings and errors, one line each: for read-only commands."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, _plainly, _Once()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(Output(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


class _Once:
    """Drops lines that were written before: a command may look at the same things several times."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, _: object, __: str, line: Any) -> str:
        if line in self._seen:
            raise structlog.DropEvent
        self._seen.add(line)
        return str(line)


def _plainly(_: object, __: str, event: EventDict) -> str:
    level, message = event.pop("level").capitalize(), event.pop("event")
    event.pop("exc_info", None)
    return f"{level}: {message}" + "".join(f" {name}={_value(value)}" for name, value in event.items())


def set_verbosity(level: int) -> None:
    """Log so much from now on."""
    verbosity.general = level


def _hide_details(_: object, method: str, event: EventDict) -> EventDict:
    if method == "debug" and verbosity.of(event["filename"].removesuffix(".py")) < DEBUG_FROM:
        raise structlog.DropEvent
    return event


def component_json(_: object, __: str, event: EventDict) -> str:
    """Return an event as Kubernetes' components write it in JSON, and its level, which they leave out.

    `ts` is in milliseconds since the epoch; errors have no `v`.
    """
    level = event.pop("level")
    head: dict[str, Any] = {
        "ts": round(time.time() * 1000, 3),
        "caller": f"{event.pop('filename')}:{event.pop('lineno')}",
        "msg": event.pop("event"),
        "level": level,
    }
    if level in LETTERS:
        head["v"] = DEBUG_FROM if level == "debug" else 0
    line = json.dumps({**head, **event}, default=str, ensure_ascii=False)
    # Half a pair of UTF-16, as in names of files that are no UTF-8, would cost the line; escaped it is valid JSON.
    return line.encode(errors="backslashreplace").decode()


def klog(_: object, __: str, event: EventDict) -> str:
    """Return an event as klog writes it: `I1124 03:49:58.123456       1 loop.py:130] "synced" services=3`."""
    letter = LETTERS.get(event.pop("level"), "E")
    place = f"{event.pop('filename')}:{event.pop('lineno')}"
    message = printable(json.dumps(event.pop("event"), ensure_ascii=False))
    pairs = "".join(f" {name}={_value(value)}" for name, value in event.items())
    return f"{letter}{datetime.now():%m%d %H:%M:%S.%f} {os.getpid():7} {place}] {message}{pairs}"  # noqa: DTZ005


def _value(value: Any) -> str:
    """Texts of several lines, such as tracebacks, are indented between < and >."""
    if isinstance(value, str) and "\n" in value:
        return "<\n" + "".join(f"\t{printable(line)}\n" for line in value.splitlines()) + " >"
    return printable(json.dumps(value, default=str, ensure_ascii=False))


def printable(text: str) -> str:
    """Escape what could end a line, move a terminal's cursor or turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


def settings(notes: Iterable[str], gates: Iterable[str], config: Config) -> None:
    """Log what an operator should know about the settings; from verbosity 1 on, every flag."""
    log = structlog.get_logger()
    for note in notes:
        log.warning(note)
    gates = list(gates)
    if gates:
        log.info("Ignored feature gates without an effect here", gates=gates)
    if config.verbosity >= FLAGS_FROM:
        for flag, value in config.flags:
            log.info("Set flag", name=f"--{flag}", value=value)
