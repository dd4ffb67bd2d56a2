"""A screen in memory."""

import io


class Terminal(io.StringIO):
    """Keeps what is written to it, and is a terminal to programs."""

    def isatty(self):
        return True
