"""What upstream's tests have said: from JUnit files into one file of the repository, and from that into a page.

    python -m tests.cluster.results     take in what ran here, and write the table in docs/compatibility.md anew

The newest result of each spec and proxy counts, a failure as well.
"""

from __future__ import annotations

import json
import pathlib
import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from tests.cluster.left_out import LEFT_OUT, left_out
from tests.cluster.place import HERE, REPO

NEW = REPO / ".cache/e2e"
"""What ran here and is not in the repository yet: a file of KEPT's form for each report."""
KEPT = REPO / HERE / "e2e.json"
PAGE = REPO / "docs/compatibility.md"
BEGIN, END = "<!-- e2e: begin -->", "<!-- e2e: end -->"
_PREFIX = re.compile(r"^\[It\] \[sig-network\] ")
_FEATURE = re.compile(r"^\[Feature:([^]]*)\]")
# What upstream describes in more than one word.
_GROUPS = (
    "Connectivity Pod Lifecycle",
    "Service CIDRs",
    "Service endpoints latency",
    "Topology Hints",
    "Traffic Distribution",
)
# Of a run that was ended (Ginkgo's types.SpecState): what the spec would have said is not known.
UNFINISHED = ("[ABORTED]", "[INTERRUPTED]")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True, slots=True)
class Spec:
    """One spec of a JUnit file; `reason` says why it was skipped or how it failed."""

    name: str
    status: str
    seconds: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SpecRun:
    """Under what a spec ran: proxy, version of Kubernetes, day."""

    proxy: str
    version: str
    date: str


def read(text: str) -> list[Spec]:
    """The specs of [sig-network] that ran, or that skipped themselves; not those that nobody asked for."""
    found = []
    for case in ET.fromstring(text).iter("testcase"):  # noqa: S314  # written by a program of ours
        name = case.get("name", "")
        spec = _spec(case, _PREFIX.sub("", name))
        if _PREFIX.match(name) and spec:
            found.append(spec)
    return found


def _spec(case: ET.Element, name: str) -> Spec | None:
    seconds = round(float(case.get("time") or 0))
    failure = case.find("failure")
    if failure is None:
        failure = case.find("error")
    if failure is not None:
        return _failed(name, seconds, failure.get("message") or failure.text or "")
    skipped = case.find("skipped")
    if skipped is None:
        return Spec(name, PASSED, seconds)
    reason = _first_line(skipped.get("message") or "").removeprefix("skipped - ")
    return Spec(name, SKIPPED, 0, reason) if reason and reason != "skipped" else None


def _failed(name: str, seconds: int, message: str) -> Spec | None:
    if message.startswith(UNFINISHED):
        return None
    return Spec(name, FAILED, seconds, _first_line(message.removeprefix("[FAILED] ")))


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else ""


def group(name: str) -> str:
    """What upstream describes with a spec, such as `Services`."""
    if match := _FEATURE.match(name):
        return match.group(1)
    return next((each for each in _GROUPS if name.startswith(each)), name.split(maxsplit=1)[0])


def take_in(source: pathlib.Path, path: pathlib.Path) -> None:
    """Take the results of one file into another, in place of older ones of the same specs with the same proxy.

    What is left out by now is not among them.
    """
    kept = load(path)
    for proxy, entries in load(source).items():
        counts = {name: entry for name, entry in entries.items() if not left_out(f"[sig-network] {name}")}
        kept.setdefault(proxy, {}).update(counts)
    _write(kept, path)


def keep(specs: list[Spec], run: SpecRun, path: pathlib.Path) -> None:
    """Take results into the file, in place of older ones of the same specs with the same proxy."""
    kept = load(path)
    for spec in specs:
        entry: dict[str, Any] = {"status": spec.status, "version": run.version, "date": run.date}
        if spec.status != SKIPPED:
            entry["seconds"] = spec.seconds
        if spec.reason:
            entry["reason"] = spec.reason
        kept.setdefault(run.proxy, {})[spec.name] = entry
    _write(kept, path)


def _write(kept: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def load(path: pathlib.Path = KEPT) -> dict[str, dict[str, Any]]:
    """Results by proxy and spec."""
    return json.loads(path.read_text()) if path.exists() else {}


def summary(specs: list[Spec]) -> str:
    """One line, and one for each failure."""
    counts = {status: sum(spec.status == status for spec in specs) for status in (PASSED, FAILED, SKIPPED)}
    lines = [", ".join(f"{count} {status}" for status, count in counts.items())]
    return "\n".join(lines + [f"FAILED {spec.name}: {spec.reason}" for spec in specs if spec.status == FAILED])


def table(kept: dict[str, dict[str, Any]], reasons: dict[str, str]) -> str:
    """The part of the page: results by group, failures, specs that skipped themselves, what is left out."""
    proxies = sorted(kept, key=lambda proxy: (proxy != "ipvsproxy", proxy))
    names = sorted({name for results in kept.values() for name in results})
    lines = [f"| upstream's specs | {' | '.join(proxies)} |", f"|---|{'---|' * len(proxies)}"]
    for each in sorted({group(name) for name in names}):
        cells = [_cell([entry for name, entry in kept[proxy].items() if group(name) == each]) for proxy in proxies]
        lines.append(f"| {each} | {' | '.join(cells)} |")
    lines += ["", *_run_lines(kept, proxies)]
    for status, title in ((FAILED, "Failed"), (SKIPPED, "Skipped by themselves")):
        lines += _listed(kept, proxies, status, title)
    lines += ["", "Left out:", "", "| specs | reason |", "|---|---|"]
    lines += [f"| `{pattern.replace('|', chr(92) + '|')}` | {reason} |" for pattern, reason in reasons.items()]
    return "\n".join(lines)


def _cell(entries: list[dict[str, Any]]) -> str:
    ran = [entry for entry in entries if entry["status"] != SKIPPED]
    passed = sum(entry["status"] == PASSED for entry in ran)
    return f"{passed} of {len(ran)}" if ran else ""


def _run_lines(kept: dict[str, dict[str, Any]], proxies: list[str]) -> list[str]:
    lines = []
    for proxy in proxies:
        entries = list(kept[proxy].values())
        dates = sorted({entry["date"] for entry in entries})
        versions = ", ".join(sorted({entry["version"] for entry in entries}))
        days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(f"- {proxy}: {_cell(entries)} passed, Kubernetes {versions}, {days}.")
    return lines


def _listed(kept: dict[str, dict[str, Any]], proxies: list[str], status: str, title: str) -> list[str]:
    lines = [
        f"- {proxy}: {name}: {entry.get('reason', '')}"
        for proxy in proxies
        for name, entry in sorted(kept[proxy].items())
        if entry["status"] == status
    ]
    return ["", f"{title}:", "", *lines] if lines else []


def page(text: str, part: str) -> str:
    """The page with the part between its two marks; ValueError when it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        message = f"the page has no {BEGIN} ... {END}"
        raise ValueError(message)
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def main() -> None:
    for source in sorted(NEW.glob("*.json"), key=lambda path: path.stat().st_mtime):
        take_in(source, KEPT)
    PAGE.write_text(page(PAGE.read_text(), table(load(), LEFT_OUT)))


if __name__ == "__main__":
    main()
