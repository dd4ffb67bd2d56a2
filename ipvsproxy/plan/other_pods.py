"""Pods of other nodes: which namespaces have a pod with an address, with as little memory as that takes.

There may be hundreds of thousands of them. An address that two namespaces claim is of both. Deterministic: no
I/O, no clock.
"""

from collections.abc import Collection, Iterator

Keys = str | tuple[str, ...]


class OtherPods:
    """Pods by `namespace/name`, and by their addresses."""

    def __init__(self) -> None:
        self._pods: dict[str, tuple[bytes, ...]] = {}
        self._at: dict[bytes, Keys] = {}

    @property
    def keys(self) -> Collection[str]:
        """The names of all pods."""
        return self._pods.keys()

    def put(self, key: str, addresses: tuple[bytes, ...]) -> set[bytes]:
        """Give a pod its addresses, none for one that is gone; return those of which something is different."""
        old = self._pods.get(key, ())
        if addresses == old:
            return set()
        for address in old:
            self._withdraw(address, key)
        self._pods.pop(key, None)
        if addresses:
            self._pods[key] = addresses
            for address in addresses:
                before = self._at.get(address)
                self._at[address] = key if before is None else (*_each(before), key)
        return {*old, *addresses}

    def namespaces_at(self, address: bytes) -> set[str]:
        """Return the namespaces of the pods that have an address."""
        found = self._at.get(address)
        return set() if found is None else {key.partition("/")[0] for key in _each(found)}

    def addresses_of(self, key: str) -> tuple[bytes, ...]:
        """Return the addresses of a pod, none of one that is not known."""
        return self._pods.get(key, ())

    def addresses_in(self, namespace: str) -> Iterator[bytes]:
        """Yield the addresses of the pods of a namespace, by a look at all pods."""
        prefix = f"{namespace}/"
        for key, addresses in self._pods.items():
            if key.startswith(prefix):
                yield from addresses

    def _withdraw(self, address: bytes, key: str) -> None:
        left = tuple(other for other in _each(self._at[address]) if other != key)
        if left:
            self._at[address] = left if len(left) > 1 else left[0]
        else:
            del self._at[address]


def _each(keys: Keys) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else keys
