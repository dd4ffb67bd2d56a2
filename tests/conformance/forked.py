"""Proxies of a lab that start in a second or two: forked from an interpreter that has imported everything."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence

from ipvsproxy.base import messages
from tests.conformance.proxy import Zygote
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabNode
from tests.lab.proxy import LabProxy


class ForkedProxy(LabProxy):
    """A proxy on a node of the lab that follows a folder of manifests; it ends with the lab at the latest."""

    def __init__(self, zygote: Zygote, lab: Lab, node: LabNode, manifests: pathlib.Path, *extra: str) -> None:
        log = pathlib.Path(tempfile.mkdtemp(prefix=f"{lab.prefix}-")) / f"{node.name}.log"
        fixed = [f"--manifests={manifests}", f"--hostname-override={node.name}", "--logging-format=json",
                 "--ipvs-min-sync-period=0s"]  # fmt: skip
        log.touch()
        super().__init__(node.netns, ["run", *fixed, *DEFAULT_PROXY_ARGS, *extra], log)
        self._zygote = zygote
        lab.proxies.append(self)

    def start(self) -> None:
        self._offset = self.log.stat().st_size
        self.process = self._zygote.fork(self.netns, self.argv, self.log)  # type: ignore[assignment]

    def started(self, extra: Sequence[str] = ()) -> ForkedProxy:
        """Start it (with further flags) and wait for its first sync."""
        self.argv += extra
        self.start()
        self.wait_for(messages.SYNCED)
        return self
