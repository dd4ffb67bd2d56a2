"""Logs: one line per event on stderr, as text or as JSON.

Verbosity follows kube-proxy's habit: 0 shows what changes and what fails, 2 and more shows how each sync went
(`verbose`), 4 and more shows details (`debug`).
"""

import logging
import sys
from collections.abc import Iterable

import structlog

from ipvsproxy.config import Config, LogFormat

FLAGS_FROM = 1
DEBUG_FROM = 4


def configure(verbosity: int, form: LogFormat) -> None:
    """Set up structlog for the whole process."""
    level = logging.DEBUG if verbosity >= DEBUG_FROM else logging.INFO
    renderer: structlog.typing.Processor
    if form is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        # Where the package rich is installed, structlog's default shows local variables, and secrets with them.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def settings(notes: Iterable[str], gates: Iterable[str], config: Config) -> None:
    """Say once what about the settings an operator should know; from verbosity 1 on, every flag."""
    log = structlog.get_logger()
    for note in notes:
        log.warning(note)
    gates = list(gates)
    if gates:
        log.info("feature gates without an effect here", gates=gates)
    if config.verbosity >= FLAGS_FROM:
        for flag, value in config.flags:
            log.info("flag", name=f"--{flag}", value=value)
