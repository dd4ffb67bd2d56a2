"""A `View` on a ledger as if all of it were in the kernel, for the commands that look."""

from ipvsproxy.plan.state import ServerState, Vip, VipForm
from tests.support.memory_state import MemoryState


class MemoryView:
    """Has the methods of `kernel.read.reader.View`; `state` can be changed."""

    def __init__(self, state: MemoryState) -> None:
        self.state = state
        self.find, self.route, self.server = state.find, state.route, state.server
        self.destinations = state.destinations
        self.has_ipvs = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def servers(self):
        return [self.state.server(key) for key in sorted(self.state.servers)]

    def server_states(self):
        return {
            v.key: ServerState(v.server, {real.destination: real.attributes for real in self.destinations(v.key)})
            for v in self.servers()
        }

    def elements(self, kind):
        return {slot: value for slot, value in self.state.elements.items() if slot.set is kind}

    def tracked(self, frontends):
        return (found for found in self.state.connections if found.frontend in frontends)

    def all_elements(self):
        return dict(self.state.elements)

    def vips(self):
        return {Vip(address, VipForm.ADDRESS) for address in self.state.vips}

    def listening(self):
        return frozenset()

    def senders(self):
        return {}

    def reserved(self):
        return ()

    def other_addresses(self):
        return frozenset(self.state.here)

    def has_link(self):
        return True

    def has_table(self):
        return True
