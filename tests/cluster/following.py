"""Copies of API objects that stay up to date, for the stand-ins that run beside a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import urllib3
from kubernetes import client, config, watch

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
        self._api = list_all.__self__.api_client
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
        listed = self._list_all()
        objects = [self._api.sanitize_for_serialization(item) for item in listed.items]
        with self._lock:
            self._objects = {_key(each): each for each in objects}
        words = {"resource_version": listed.metadata.resource_version, "timeout_seconds": WATCH_SECONDS}
        for event in watch.Watch().stream(self._list_all, **words):
            self._take(event["type"], event["raw_object"])

    def _take(self, kind: str, each: dict[str, Any]) -> None:
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(_key(each), None)
            else:
                self._objects[_key(each)] = each


def _key(each: dict[str, Any]) -> tuple[str, str]:
    return each["metadata"].get("namespace", ""), each["metadata"]["name"]
