"""What a proxy of this node reports on its own port, taken for no more than that.

Any user may listen at a free port, and so may any process of root's in a container of the host's
network, whatever its capabilities. So an answer counts only if the listener is root's, or that of our own user; it
is bounded in size and time (`probe.web`), and the caller checks it against what it should be.
"""

import http
import os

from ipvsproxy.config import Listen
from ipvsproxy.config.document import ConfigFileError
from ipvsproxy.kernel.process import listening_users
from ipvsproxy.probe.web import get


def ask(listen: Listen, path: str, longest: int) -> str:
    """Return the text of a page. Raises ConfigFileError, OSError, HTTPException."""
    if foreign := listening_users(listen.port) - {0, os.geteuid()}:
        raise ConfigFileError(
            f"user {min(foreign)} listens there, who is not root, and not whom this command runs as"
        )
    status, text = get(listen, path)
    if status != http.HTTPStatus.OK or len(text) > longest:
        raise ConfigFileError(f"answers {status}, {len(text)} bytes")
    return text
