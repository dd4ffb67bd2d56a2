"""A clock that a test sets."""


class Clock:
    """Returns `now` whenever it is asked."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now
