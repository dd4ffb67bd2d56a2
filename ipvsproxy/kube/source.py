"""The Kubernetes API as a source of objects: a reflector for each kind, and what is read beside objects.

A configuration that can never work is a `SourceFailed`. A server that does not answer is waited for.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

from ipvsproxy.exchange.inbox import ALWAYS, Inbox, Kind, SourceFailed
from ipvsproxy.kube.api import Observe
from ipvsproxy.kube.client import ClientLimits, KubeClient
from ipvsproxy.kube.kubeconfig import KubeconfigError
from ipvsproxy.kube.locate import Locator
from ipvsproxy.kube.other_nodes import OtherNodes
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.reflector import Reflector


class ApiSource:
    """Follows some kinds at one API server; `client` is connected some time after `start`."""

    def __init__(  # noqa: PLR0913 - what a source is put together of
        self,
        kubeconfig: Path | None,
        master: str,
        node_name: str,
        limits: ClientLimits | None = None,
        pace: Pace | None = None,
        *,
        observe: Observe = lambda *_: None,
        kinds: Iterable[Kind] = ALWAYS,
        all_pods: bool = False,
    ) -> None:
        self.kinds = tuple(kinds)
        self.client = KubeClient(kubeconfig, master, node_name, limits, observe, all_pods=all_pods)
        self._pace = pace
        self._node_name = node_name
        self._reflectors: list[Reflector] = []
        self._neighbourhood: OtherNodes | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self) -> str:
        """Return why no server can be asked with these files, or an empty text."""
        try:
            self.client.check()
        except KubeconfigError as error:
            return str(error)
        return ""

    def start(self, inbox: Inbox) -> None:
        """Begin to deliver; a configuration that can never work is a `SourceFailed`."""
        self._thread = threading.Thread(target=self._open, args=(inbox,), name="api", daemon=True)
        self._thread.start()

    def ask(self) -> int:
        """Ask for a look at the addresses of other nodes, and return the ticket that it will answer."""
        return self._neighbourhood.ask() if self._neighbourhood is not None else 0

    def stop(self) -> None:
        """End all threads and connections; what was delivered stays as it is."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._neighbourhood is not None:
            self._neighbourhood.stop()
        for reflector in self._reflectors:
            reflector.stop()
        self.client.close()

    def _open(self, inbox: Inbox) -> None:
        # In a thread: importing takes a third of a second, and an exec plugin as long as it likes.
        try:
            self.client.connect()
        except KubeconfigError as error:
            inbox.put(SourceFailed(str(error)))
            return
        # Before anything is listed, so that no Service gets the address first.
        locator = Locator(self.client.url, inbox)
        seconds = locator.look()
        self._neighbourhood = OtherNodes(self.client, self._node_name, inbox)
        self._neighbourhood.start()
        self._reflectors = [Reflector(kind, self.client, inbox, self._pace) for kind in self.kinds]
        for reflector in self._reflectors:
            reflector.start()
        while not self._ended.wait(seconds):
            seconds = locator.look()
