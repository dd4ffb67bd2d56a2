"""Signs that the kernel's own tables are too small, or its housekeeping too much, for what runs through it.

Looked at with every verification: a handful of small files and numbers that are known anyway. Each concern is
logged once when it appears and once when it is over. Nothing is changed here, since none of it is ours to change:
the size of IPVS's connection table is fixed when its module is loaded, conntrack's limit has settings of its own
(`--conntrack-max-per-core`, `--conntrack-min`), and IPVS's rate estimation is what `ipvsadm --rate` shows.

Facts: net/netfilter/ipvs/ip_vs_est.c (before Linux 6.2 one timer walks all statistics of all CPUs every two
seconds, in softirq; kernel commit 2232642ec3fb tells of more than 200 ms), ip_vs_conn.c (2 ** conn_tab_bits
buckets, 12 bits by default; Linux 7.3 begins with fewer and grows up to that).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from ipvsproxy.base import messages

PROC = Path("/proc")
SYS = Path("/sys")
RUN_ESTIMATION = "sys/net/ipv4/vs/run_estimation"
ESTIMATION_THREADS = "sys/net/ipv4/vs/est_nice"
"""Only kernels that estimate in threads, and not in softirq, have this setting (Linux 6.2)."""
CONNTRACK_COUNT, CONNTRACK_MAX = "sys/net/netfilter/nf_conntrack_count", "sys/net/netfilter/nf_conntrack_max"
CONNECTION_BITS = "module/ip_vs/parameters/conn_tab_bits"
CONNTRACK_FULL = 0.8
ENTRIES_A_BUCKET = 8
STATISTICS = 1_000_000
"""Statistics times CPUs from which estimation is worth a word: by the commit above, tens of milliseconds."""

log = structlog.get_logger()


class Concern(NamedTuple):
    """What is under pressure, the numbers behind it, and what helps."""

    subject: str
    numbers: dict[str, int]
    advice: str


class Pressure:
    """Remembers which concerns have been logged."""

    def __init__(self, proc: Path = PROC, sys: Path = SYS, cpus: int | None = None) -> None:
        self._proc, self._sys = proc, sys
        self._cpus = cpus or os.cpu_count() or 1
        self._reported: set[str] = set()

    def look(self, servers: int, destinations: int) -> None:
        """Log what is new; `servers` and `destinations` are how many IPVS holds."""
        concerns = {concern.subject: concern for concern in self.concerns(servers, destinations)}
        for subject in concerns.keys() - self._reported:
            concern = concerns[subject]
            log.warning(messages.PRESSURE, subject=subject, advice=concern.advice, **concern.numbers)
        for subject in self._reported - concerns.keys():
            log.info(messages.PRESSURE_OVER, subject=subject)
        self._reported = set(concerns)

    def concerns(self, servers: int, destinations: int) -> Iterator[Concern]:
        """Yield everything that is under pressure now."""
        count, limit = self._number(self._proc / CONNTRACK_COUNT), self._number(self._proc / CONNTRACK_MAX)
        if limit and count > limit * CONNTRACK_FULL:
            yield Concern(
                "conntrack",
                {"entries": count, "limit": limit},
                "new connections are dropped when it is full: raise --conntrack-max-per-core or --conntrack-min",
            )
        bits = self._number(self._sys / CONNECTION_BITS)
        if bits and count > ENTRIES_A_BUCKET << bits:
            yield Concern(
                "IPVS connection table",
                {"connections": count, "buckets": 1 << bits},
                f"every packet searches a long chain: load the module with conn_tab_bits={_bits_for(count)}",
            )
        yield from self._estimation(servers + destinations)

    def _estimation(self, statistics: int) -> Iterator[Concern]:
        runs = self._number(self._proc / RUN_ESTIMATION)
        in_softirq = not (self._proc / ESTIMATION_THREADS).exists()
        if runs and in_softirq and statistics * self._cpus > STATISTICS:
            yield Concern(
                "IPVS rate estimation",
                {"statistics": statistics, "cpus": self._cpus},
                "it delays packets every two seconds: set net.ipv4.vs.run_estimation to 0 (ipvsadm shows no rates"
                " then), or use Linux 6.2 or later",
            )

    @staticmethod
    def _number(path: Path) -> int:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return 0


def _bits_for(connections: int) -> int:
    """Return the table size, in bits, at which buckets hold one connection or so; the kernel takes 8 to 20."""
    return min(20, max(8, connections.bit_length()))
