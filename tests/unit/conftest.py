from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from tests.support import surroundings

surroundings.without_proxies()
# A busy machine is no bug.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What is run as a whole program sets up the process's logs, which in a test outlives it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
