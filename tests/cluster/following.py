"""Copies of API objects that stay up to date, for the stand-ins that run beside a cluster.

As plain JSON: the client's own types refuse whole lists for one field that the API server has accepted.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from kubernetes import client, config

WATCH_SECONDS = 300
PAUSE_SECONDS = 1.0


def connect(kubeconfig: str) -> client.ApiClient:
    return config.new_client_from_config(kubeconfig)


class Follower:
    """All objects of one kind by (namespace, name), as the API's JSON has them.

    `list_all` is a method of the client, such as CoreV1Api(...).list_service_for_all_namespaces.
    """

    def __init__(self, list_all: Callable[..., Any]) -> None:
        self._list_all = list_all
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._follow_for_ever, daemon=True).start()

    def objects(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._objects.values())

    def _follow_for_ever(self) -> None:
        while True:
            try:
                self._follow()
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                print(f"{self._list_all.__name__}: {error}", flush=True)
                time.sleep(PAUSE_SECONDS)

    def _follow(self) -> None:
        listed = json.loads(self._list_all(_preload_content=False).data)
        with self._lock:
            self._objects = {_key(each): each for each in listed["items"]}
        version = listed["metadata"]["resourceVersion"]
        words = {"watch": True, "resource_version": version, "timeout_seconds": WATCH_SECONDS}
        for line in _lines(self._list_all(**words, _preload_content=False)):
            event = json.loads(line)
            if event["type"] == "ERROR":
                return
            self._take(event["type"], event["object"])

    def _take(self, kind: str, each: dict[str, Any]) -> None:
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(_key(each), None)
            else:
                self._objects[_key(each)] = each


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Complete lines, each as soon as it is there."""
    rest = b""
    for piece in response.stream():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _key(each: dict[str, Any]) -> tuple[str, str]:
    return each["metadata"].get("namespace", ""), each["metadata"]["name"]
