"""An inbox that keeps each event it is given, for tests of what is put into it."""

import queue

from ipvsproxy.exchange.inbox import Inbox


class RecordingInbox(Inbox):
    def __init__(self):
        super().__init__()
        self._events = queue.SimpleQueue()

    def put(self, event):
        self._events.put(event)

    def take(self, timeout):
        found = []
        try:
            found.append(self._events.get(timeout=timeout))
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            return found
