"""Objects read once, from where the proxy would read them, and what this node should have of them.

Nothing is written, and nothing of a kernel is needed but the addresses of this node's links.
"""

import time
from collections.abc import Iterable
from dataclasses import replace

from ipvsproxy import app
from ipvsproxy.commands.given import Failed
from ipvsproxy.config import Config
from ipvsproxy.desired import Desired
from ipvsproxy.kernel import host
from ipvsproxy.kube.inbox import Failed as SourceFailed
from ipvsproxy.kube.inbox import Inbox, Kind, Listed
from ipvsproxy.report import Report

API_SECONDS = 60.0


def read(config: Config) -> list[Listed]:
    """Return all objects of the folder or the API server that the settings name. Raises Failed."""
    if config.manifests is not None:
        return _read_folder(config)
    inbox = Inbox()
    source, _ = app.source(config, lambda *_: None)
    source.start(inbox)
    found: dict[Kind, Listed] = {}
    deadline = time.monotonic() + API_SECONDS
    while len(found) < len(Kind):
        left = deadline - time.monotonic()
        if left <= 0:
            raise Failed(f"the API server has not answered within {API_SECONDS:.0f} s")
        for event in inbox.take(left):
            if isinstance(event, SourceFailed):
                raise Failed(event.reason)
            if isinstance(event, Listed):
                found[event.kind] = event
    return list(found.values())


def _read_folder(config: Config) -> list[Listed]:
    from ipvsproxy.kube.manifests import Folder

    folder = config.manifests
    assert folder is not None  # noqa: S101 - the caller has looked
    try:
        return Folder(folder).load()
    except OSError as error:
        raise Failed(f"manifests folder {folder}: {error.strerror or error}") from error


def desired(config: Config, objects: Iterable[Listed], link_addresses: Iterable[bytes]) -> Desired:
    """Return what a node with these addresses should have."""
    wanted = Desired(config, Report())
    for listed in objects:
        wanted.store.apply(listed)
    wanted.look_at_node(link_addresses)
    wanted.store.all_dirty()
    wanted.plan(wanted.store.take_dirty())
    return wanted


def of_this_host(config: Config) -> Config:
    """Return the settings with the IP families of this host, as `run` has them."""
    return replace(config, families=host.families())
