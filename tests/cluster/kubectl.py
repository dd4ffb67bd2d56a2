"""kubectl as the cluster's administrator."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterable
from typing import Any

from tests.cluster.binaries import Kube
from tests.cluster.place import Cluster


class Kubectl:
    """Runs kubectl in the cluster's namespace."""

    def __init__(self, cluster: Cluster, kube: Kube) -> None:
        self._words = cluster.inside(kube["kubectl"], f"--kubeconfig={cluster.admin}")

    def __call__(self, *words: object, text: str | None = None) -> str:
        """What it prints; CalledProcessError when it fails, with kubectl's reason in `stderr` and in its notes."""
        argv = [*self._words, *map(str, words)]
        try:
            return subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise

    def get(self, *words: object) -> Any:
        """An object, or a list of them."""
        return json.loads(self("get", *words, "--output=json"))

    def apply(self, objects: Iterable[dict[str, Any]]) -> None:
        self("apply", self.validation, "--filename=-", text=_list(objects))

    def create(self, objects: Iterable[dict[str, Any]]) -> None:
        """Quicker where there are none so far."""
        self("create", self.validation, "--filename=-", text=_list(objects))

    @functools.cached_property
    def validation(self) -> str:
        """The flag for `apply`; some API servers that are not official builds cannot describe their objects."""
        said = subprocess.run([*self._words, "explain", "configmap.data"], capture_output=True, check=False)
        return "--validate=ignore" if said.returncode else "--validate=strict"

    def argv(self, *words: str) -> list[str]:
        """For those who run it themselves."""
        return [*self._words, *words]


def _list(objects: Iterable[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
