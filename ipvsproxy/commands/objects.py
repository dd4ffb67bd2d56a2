"""Objects read once, from where the proxy would read them, and what this node should have of them.

Nothing is written, and nothing of a kernel is needed but the addresses of this node's links.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from ipvsproxy import app
from ipvsproxy.commands.given import Failed
from ipvsproxy.config import Config
from ipvsproxy.desired import Desired
from ipvsproxy.kernel import host
from ipvsproxy.kube.api import Trouble
from ipvsproxy.kube.documents import Unreadable, read_items
from ipvsproxy.kube.inbox import Failed as SourceFailed
from ipvsproxy.kube.inbox import Inbox, Kind, Listed
from ipvsproxy.kube.kubeconfig import Unusable
from ipvsproxy.kube.manifests import SUFFIXES, Folder
from ipvsproxy.plan.node import Reserved
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
    folder = config.manifests
    assert folder is not None  # noqa: S101 - the caller has looked
    try:
        return Folder(folder).load()
    except OSError as error:
        raise Failed(f"manifests folder {folder}: {error.strerror or error}") from error


class _Meta(msgspec.Struct):
    name: str = ""
    namespace: str = "default"
    labels: dict[str, str] = {}


class _Labelled(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _List(msgspec.Struct):
    items: list[_Labelled] = []


def labels(config: Config) -> dict[str, dict[str, str]]:
    """Return the labels of all Services by `namespace/name`: only `show` has a use for them. Raises Failed."""
    metas = [item.metadata for item in (_folder_services if config.manifests else _api_services)(config)]
    return {f"{meta.namespace}/{meta.name}": meta.labels for meta in metas}


def _folder_services(config: Config) -> Iterator[_Labelled]:
    assert config.manifests is not None  # noqa: S101 - the caller has looked
    for path in sorted(config.manifests.iterdir()):
        if path.suffix not in SUFFIXES or path.name.startswith("."):
            continue
        with suppress(Unreadable, OSError, msgspec.ValidationError):  # said when the objects themselves were read
            for item in read_items(path.name, path.read_bytes()):
                if item.kind == Kind.SERVICE:
                    yield _labelled(item.body)


def _labelled(body: Any) -> _Labelled:
    if isinstance(body, msgspec.Raw):
        return msgspec.json.decode(body, type=_Labelled)
    return msgspec.convert(body, _Labelled)


def _api_services(config: Config) -> Iterator[_Labelled]:
    from ipvsproxy.kube.client import Client

    client = Client(config.kubeconfig, config.master, config.node_name)
    try:
        client.connect()
        yield from msgspec.json.decode(client.list(Kind.SERVICE, 0, "", "").read(), type=_List).items
    except (Trouble, Unusable, msgspec.DecodeError) as error:
        raise Failed(f"the API server: {error}") from error
    finally:
        client.close()


def desired(
    config: Config, objects: Iterable[Listed], link_addresses: Iterable[bytes], reserved: Iterable[Reserved] = ()
) -> Desired:
    """Return what a node with these addresses, that depends on the reserved ones, should have."""
    wanted = Desired(config, Report())
    for listed in objects:
        wanted.store.apply(listed)
    wanted.look_at_node(link_addresses, reserved)
    wanted.store.all_dirty()
    wanted.plan(wanted.store.take_dirty())
    return wanted


def of_this_host(config: Config) -> Config:
    """Return the settings with the IP families of this host, as `run` has them."""
    return replace(config, families=host.families())
