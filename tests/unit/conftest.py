from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import structlog
from hypothesis import settings

from ipvsproxy.probe import live, web
from tests.support import surroundings
from tests.support.ports import held_port

surroundings.without_proxies()
# A busy machine is no bug: what must happen may take its time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
live.SECONDS = web.SECONDS = 60.0


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What is run as a whole program sets up the process's logs, which in a test outlives it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def free_port() -> Iterator[Callable[..., int]]:
    """Give ports on which nobody listens, each of which is the test's until it ends."""
    with ExitStack() as held:
        yield lambda host="127.0.0.1": held.enter_context(held_port(host))
