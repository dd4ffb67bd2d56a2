import pytest
import structlog


@pytest.fixture(autouse=True)
def logs_as_before():
    """Commands set up the process's logs, which in a test outlives them."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
