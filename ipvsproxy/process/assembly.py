"""The loop, put together from its parts in reading order."""

import time
from collections.abc import Callable

from ipvsproxy.config import Config
from ipvsproxy.exchange.inbox import Inbox
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.plan.backoff import Backoff
from ipvsproxy.plan.slices import Room
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.drain import Drainer
from ipvsproxy.reconciler.foreign_servers import ForeignServers
from ipvsproxy.reconciler.groups import Joining, Leaving
from ipvsproxy.reconciler.loop import Loop, Parts
from ipvsproxy.reconciler.node_look import ListenerLook, NodeLook
from ipvsproxy.reconciler.planner import Planner, Withheld
from ipvsproxy.reconciler.repair import Repairer
from ipvsproxy.reconciler.sample import Sampler
from ipvsproxy.reconciler.schedulers import SchedulerLook, in_a_thread
from ipvsproxy.reconciler.stale_connections import Sweeper
from ipvsproxy.reconciler.start import Start
from ipvsproxy.reconciler.verify import Verifier
from ipvsproxy.reconciler.wanted_state import WantedState


def make_loop(  # noqa: PLR0913 - what a process is put together of
    config: Config,
    inbox: Inbox,
    kernel: Kernel,
    clock: Callable[[], float] = time.monotonic,
    report: Report | None = None,
    *,
    alone: bool = True,
    ask: Callable[[], int] | None = None,
    aside: Callable[[Callable[[], None]], None] = in_a_thread,
) -> Loop:
    """Return the loop of a process.

    `alone` is whether no other proxy has this node, `ask` asks for a look at the addresses of other nodes, `aside`
    runs what takes long beside the loop.
    """
    report = report or Report()
    wanted = WantedState(config, report, ask, clock)
    node, period = config.node_name, config.sync_period
    backoff = Backoff()
    sweeper = Sweeper(kernel, backoff, clock, report, wanted.group_of)
    room = Room()
    drainer = Drainer(kernel, wanted, sweeper, backoff, room, clock=clock, report=report)
    foreign = ForeignServers(report, node)
    excluded = config.exclude_cidrs
    applier = Applier(kernel, wanted, drainer, sweeper, foreign, backoff, room, clock=clock, excluded=excluded)
    verifier = Verifier(kernel, applier, clock, report, node, period)
    repairer = Repairer(kernel, applier, verifier, clock, report, node, period)
    look = NodeLook(kernel, wanted, applier, clock, period)
    listeners = ListenerLook(kernel, wanted, clock, period)
    schedulers = SchedulerLook(kernel, wanted, inbox, clock, period, aside)
    leaving = Leaving(wanted, applier, clock)
    parts = Parts(
        start=Start(kernel, wanted, look, listeners, schedulers, applier, verifier, clock=clock, report=report),
        node=look,
        listeners=listeners,
        schedulers=schedulers,
        leaving=leaving,
        planner=Planner(wanted, applier, clock),
        withheld=Withheld(wanted, clock, period),
        sampler=Sampler(kernel, repairer, clock),
        repairer=repairer,
        verifier=verifier,
        applier=applier,
        joining=Joining(wanted, applier, sweeper, leaving, clock),
        drainer=drainer,
        sweeper=sweeper,
    )
    return Loop(inbox, wanted, parts, clock, report, min_sync_period=config.min_sync_period, alone=alone)
