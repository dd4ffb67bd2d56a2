"""What the outside sees of a process, put together: health and metrics servers, health-check listeners, events.

In: the settings, and the way to the API's events if there is one. Out: the `Report` for the loop. The servers
answer before the API server does, so that waiting is not taken for a failure (contract 1.9).
"""

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from ipvsproxy.config import Config, Listen
from ipvsproxy.exchange.report import Report
from ipvsproxy.kube.events import EventClient, Events, cannot_listen, replacing, starting, waiting
from ipvsproxy.kube.kubeconfig import KubeconfigError
from ipvsproxy.serve import pages
from ipvsproxy.serve.board import Board
from ipvsproxy.serve.http import ListenAddress, Listener
from ipvsproxy.serve.refusals import Refusals
from ipvsproxy.serve.traffic import CounterReader, Traffic

LAST_EVENTS_SECONDS = 15.0


class Observability:
    """The servers and the events of one process. `set_verbosity` changes how much is logged."""

    def __init__(self, config: Config, set_verbosity: Callable[[int], None]) -> None:
        self._config = config
        self._set_verbosity = set_verbosity
        self._events = Events(socket.gethostname(), self._count_event)
        self._board = Board(config.sync_period, self._events.put, sorted(config.families))

    @property
    def report(self) -> Report:
        """What the loop is to tell its facts to."""
        return self._board

    def show_traffic(self, look: Callable[[], CounterReader]) -> None:
        """Have counters of single Services among the metrics; `look` opens the kernel's, for any thread."""
        self._board.show_traffic(Traffic(self._config.service_metrics, look))

    def show_refusals(self, read: Callable[[], Mapping[int, int]]) -> None:
        """Have refused connections of tenants among the metrics; `read` asks the kernel, for any thread."""
        self._board.show_refusals(Refusals(read))

    def observe_request(self, verb: str, host: str, code: str, seconds: float) -> None:
        """Take note of a request to the API server; for any thread."""
        self._board.metrics.requested(verb, host, code, seconds)

    def listen(self) -> None:
        """Open the servers. Raises OSError only with bindAddressHardFail; else what is busy is tried again."""
        self._board.server.start(self._listeners(), hard=self._config.bind_address_hard_fail)

    def send_events(self, client: EventClient | None) -> None:
        """Begin to send events, the start of the process first."""
        self._events.put(starting(self._config.node_name))
        if self._config.other_mode:
            self._events.put(replacing(self._config.node_name, self._config.other_mode))
        self._events.begin(client)

    def standby(self, holder: str) -> None:
        """Say that another proxy has this node and is waited for; '' when it has ended."""
        self._board.health.standby(holder)
        if holder:
            self._events.put(waiting(self._config.node_name, holder))

    def send_last_events(self, client: EventClient | None, error: OSError) -> None:
        """Send the event that a server cannot listen, and wait a little until it is out."""
        server, _, note = str(error).partition(": ")
        self._events.put(cannot_listen(self._config.node_name, server, note))
        if client is not None:
            # It is done here and in no other place, so that slow imports and exec plugins do not take from the
            # seconds.
            with suppress(KubeconfigError):
                client.connect()
        self._events.begin(client)
        self._events.stop(LAST_EVENTS_SECONDS)

    def _count_event(self, result: str) -> None:
        self._board.metrics.noticed(result)

    def _listeners(self) -> list[Listener]:
        found = []
        if self._config.healthz_bind_address:
            found.append(self._board.health_listener(_address(self._config.healthz_bind_address)))
        if self._config.metrics_bind_address:
            address = _address(self._config.metrics_bind_address)
            found.append(self._board.metrics_listener(address, self._pages()))
        return found

    def _pages(self) -> pages.Pages:
        config, book = self._config, pages.Pages()
        book.add("/configz", pages.configz(config.document, config.own_document))
        if config.serve_flagz:
            book.add("/flagz", pages.flagz(config.flags))
        if config.serve_statusz:
            book.add("/statusz", pages.statusz(config.kubernetes_version))
        if config.profiling:
            book.add("/debug/flags/v", pages.verbosity(self._set_verbosity))
        return book


def _address(listen: Listen) -> ListenAddress:
    return ListenAddress(listen.address, listen.port, both=True)
