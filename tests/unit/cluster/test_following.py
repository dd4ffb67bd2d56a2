"""Copies of API objects: what they take of lists and watches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.cluster.following import Follower


class ChunkedReply:
    """Of the API server, in pieces that end anywhere."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def stream(self) -> Iterator[bytes]:
        yield from (self.data[at : at + 7] for at in range(0, len(self.data), 7))


def service(name: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "status": status}


def test_objects_are_those_of_the_list_and_what_events_made_of_them():
    # Accepted by the API server, and no Service for the types of the Python client.
    odd = service("odd", conditions=[{"type": "Odd", "lastTransitionTime": None}])
    items = {"metadata": {"resourceVersion": "7"}, "items": [service("gone"), odd]}
    events = [("DELETED", service("gone")), ("ADDED", service("new")), ("MODIFIED", service("new", now=True))]
    lines = [json.dumps({"type": kind, "object": each}).encode() + b"\n" for kind, each in events]
    asked = []

    def list_all(**words: Any) -> ChunkedReply:
        asked.append(words)
        return ChunkedReply(b"".join(lines) if words.get("watch") else json.dumps(items).encode())

    follower = Follower(list_all)
    follower._follow()
    assert follower.objects() == [odd, service("new", now=True)]
    assert asked[1]["resource_version"] == "7"
