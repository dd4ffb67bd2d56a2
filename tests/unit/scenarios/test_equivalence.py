"""Any history ends where a cold start from the final objects ends, on the kernel in memory.

`make unit` tries a few; HISTORIES=5000 (and STEPS=60) tries as many as one likes.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from structlog.testing import capture_logs

from ipvsproxy.plan import ledger
from tests.support.histories import History

HISTORIES = int(os.environ.get("HISTORIES", "30"))


@pytest.fixture(autouse=True, scope="module")
def _small_and_quiet():
    """A few VIPs are many; a log line for each refusal is too much."""
    before = ledger.ROUTES_ABOVE, ledger.ADDRESSES_BELOW
    ledger.ROUTES_ABOVE, ledger.ADDRESSES_BELOW = 4, 2
    with capture_logs():
        yield
    ledger.ROUTES_ABOVE, ledger.ADDRESSES_BELOW = before


TestHistories = History.TestCase
TestHistories.pytestmark = [pytest.mark.timeout(300 + HISTORIES)]
TestHistories.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=int(os.environ.get("STEPS", "25")),
    deadline=None,
    # The same histories each time, where not asked for many: what is new is not found in somebody else's change.
    derandomize="HISTORIES" not in os.environ,
    report_multiple_bugs=False,
    # Shrinking a history takes minutes.
    phases=set(Phase) - (set() if "SHRINK" in os.environ else {Phase.shrink, Phase.explain}),
    suppress_health_check=list(HealthCheck),
)
