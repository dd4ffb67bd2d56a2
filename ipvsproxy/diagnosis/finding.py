"""What a check reports: a verdict, what it rests on, and what to do next."""

from enum import StrEnum

import msgspec


class CheckResult(StrEnum):
    """How a check ended."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOT_CHECKED = "not checked"
    OK = "ok"


ORDER = tuple(CheckResult)


class Finding(msgspec.Struct, frozen=True):
    """One answer of one check: `summary` in one line, `evidence` as it was read, `next` is what to do."""

    check: str
    verdict: CheckResult
    summary: str
    evidence: tuple[str, ...] = ()
    next: str = ""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def fine(check: str, summary: str, *evidence: str) -> Finding:
    """Say that all is well."""
    return Finding(check, CheckResult.OK, summary, evidence)


def problem(check: str, summary: str, *evidence: str, step: str) -> Finding:
    """Say what is wrong and what helps."""
    return Finding(check, CheckResult.PROBLEM, summary, evidence, step)


def warning(check: str, summary: str, *evidence: str, step: str) -> Finding:
    """Say what may hurt."""
    return Finding(check, CheckResult.WARNING, summary, evidence, step)


def unchecked(check: str, reason: str, step: str = "") -> Finding:
    """Say why nothing was checked."""
    return Finding(check, CheckResult.NOT_CHECKED, reason, (), step)
