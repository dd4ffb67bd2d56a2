"""Whether a kube-proxy runs on this node, by everything that shows it.

Its process, where the host's processes can be seen; what answers on its ports; and rules that it has written after
ipvsproxy had removed them, which `ipvsproxy` does once at its start. No sign is no proof in a container.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import KubeProxy, Process
from ipvsproxy.kernel.filters.kube_proxy import mode_of_rules, written_by_kube_proxy
from ipvsproxy.kernel.read.survey import read_processes, sees_host_processes
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.probe.kube_proxy import answers

PROGRAM = "kube-proxy"
IPVS_MODE = "ipvs"


def signs(config: Config, processes: Iterable[Process], *, ours_runs: bool) -> KubeProxy:
    """Return what shows that a kube-proxy runs here, without its rules.

    `ours_runs`: an ipvsproxy runs on this node.
    """
    seen = [f"process {process.pid}: {process.command}" for process in processes if process.program == PROGRAM]
    answering = list(answers(config, ours_runs=ours_runs))
    mode = next((mode for _, mode in answering if mode), "")
    return KubeProxy((*seen, *(sign for sign, _ in answering)), mode, sees_host_processes())


class OtherProxy(NamedTuple):
    """A kube-proxy as cleanup meets it, while no ipvsproxy runs: what shows that it runs, and its rules."""

    running: KubeProxy
    rules: tuple[str, ...] = ()

    @property
    def is_gone(self) -> bool:
        """Whether none runs, as far as that can be seen: nothing is left, or its process would be seen."""
        return not self.running.signs and (not self.rules or self.running.sees_processes)

    @property
    def is_in_ipvs_mode(self) -> bool:
        """Whether virtual servers and kube-ipvs0 are its own as well."""
        return self.running.mode == IPVS_MODE


def look(config: Config) -> OtherProxy:
    """Return what there is of a kube-proxy while no ipvsproxy runs. Raises OSError."""
    try:
        rules, was_here = written_by_kube_proxy(), bool(Ruleset(TABLE.name).stamp())
        mode = mode_of_rules()
    except (KernelError, OSError):
        rules, was_here, mode = [], False, ""  # a kernel without nf_tables has no rules of anybody
    found = signs(config, read_processes((PROGRAM,)), ours_runs=False)
    written = [f"it has written rules since ipvsproxy ran here: {', '.join(rules)}"] if rules and was_here else []
    return OtherProxy(KubeProxy((*found.signs, *written), found.mode or mode, found.sees_processes), tuple(rules))
