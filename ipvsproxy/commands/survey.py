"""Everything that can be seen of a node, read once into `diagnosis.facts`.

Nothing is changed. What cannot be read (no rights, no kernel, no API) is left out: `Facts.unread` states why.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from ipvsproxy.commands import drift
from ipvsproxy.commands.survey_dns import ask_dns
from ipvsproxy.commands.survey_kernel import read_kernel
from ipvsproxy.commands.survey_objects import find_objects, plan_node, tenants_seen
from ipvsproxy.commands.survey_tenant_dns import ask_tenant_dns
from ipvsproxy.config import Config
from ipvsproxy.config.table import BY_FLAG
from ipvsproxy.diagnosis.facts import Facts, KubeProxy, SettingsFacts
from ipvsproxy.inspect.difference import Change
from ipvsproxy.kernel import host
from ipvsproxy.kube.once import Objects
from ipvsproxy.plan.state import KernelState
from ipvsproxy.probe.web import read_proxy
from ipvsproxy.process.other_proxy import signs
from ipvsproxy.reconciler.wanted_state import WantedState


class SurveyResult(NamedTuple):
    """The facts, and what they were made from as far as it could be had; `drift` is None where it is not known."""

    facts: Facts
    objects: Objects | None
    desired: WantedState | None
    kernel: KernelState | None
    drift: Sequence[Change] | None = None


def survey(config: Config, cluster_domain: str, origin: str = "") -> SurveyResult:
    """Look at everything; `origin` is where the settings come from."""
    facts = Facts(settings=_settings(config, origin))
    kernel, around = read_kernel(facts, config)
    objects = find_objects(facts, config)
    wanted, found = None, None
    if objects is not None:
        wanted = plan_node(facts, config, objects, around, kernel.servers if kernel is not None else None)
        if kernel is not None:
            found = drift.differences(config, wanted, kernel)
            found = drift.confirmed(config, found) if facts.holder else found
            facts.drift = tuple(drift.sentences(found))
        else:
            facts.unread["drift"] = f"the kernel cannot be read: {facts.unread.get('state', 'it has no IPVS')}"
        facts.tenants = tenants_seen(wanted, found)
        facts.tenant_dns = ask_tenant_dns(wanted.tenants, wanted.services.values(), cluster_domain)
        facts.dns = ask_dns(wanted, objects, cluster_domain, facts.held_vips)
    elif config.tenant_label:
        facts.unread["tenants"] = "objects cannot be read"
    facts.proxy = read_proxy(config)
    facts.kube_proxy = _kube_proxy(facts, config)
    return SurveyResult(facts, objects, wanted, kernel, found)


def _kube_proxy(facts: Facts, config: Config) -> KubeProxy:
    ours = (
        facts.proxy is not None and facts.proxy.health != 0 and facts.proxy.is_ours and bool(facts.proxy.metrics)
    )
    return signs(config, facts.processes, ours_runs=bool(facts.holder) or ours)


def _settings(config: Config, origin: str) -> SettingsFacts:
    return SettingsFacts(
        node=config.node_name,
        version=version("ipvsproxy"),
        source=f"the folder {config.manifests}" if config.manifests else "the API server",
        cluster_cidrs=tuple(config.cluster_cidrs),
        mark=config.masquerade_mark,
        scheduler=config.scheduler,
        sync_period=config.sync_period,
        sysctls=dict(host.wanted_sysctls(config)),
        origin=origin,
        flags={name: value for name, value in config.flags if BY_FLAG[name].decides},
    )
