"""A client in memory: sets and maps of one table with the kernel's rules for elements, no packets.

It reads the text of a transaction, the same text the kernel would get, so tests that use it also check the
wording. Rules of the kernel it keeps: a transaction is all or nothing, an element that is there may be added
again with the same value only (EEXIST), a missing element or set cannot be used (ENOENT), not by a chain either,
and `flush set` finds no map, `flush map` no set.
"""

import errno
import os
import re
from collections.abc import Callable

from nft.errors import NftError
from nft.transaction import Transaction

Sets = dict[str, dict[str, str]]

_DECLARATION = re.compile(r"^\s*(set|map)\s+(\w+)\s*{", re.MULTILINE)
_ELEMENTS = re.compile(r"^(add|delete) element \w+ \w+ (\w+) { (.*) }$")
_CHAIN = re.compile(r"^\s*chain (\w+) {", re.MULTILINE)
_DELETED_CHAIN = re.compile(r"^delete chain \w+ \w+ (\w+)$")
_LOOKUP = re.compile(r"@(\w+)\b(?!,)")
"""A set; what is followed by a comma is a part of the packet, such as `@nh,0,32`."""
_FLUSH = re.compile(r"^flush (set|map) \w+ \w+ (\w+)$")
_TABLE = re.compile(r"^(add|delete) table ")
_COMMANDS = ("add table ", "delete table ", "add element ", "delete element ", "flush set ", "flush map ",
             "delete chain ")  # fmt: skip


class FakeNft:
    """A `Client` whose table can be looked at: `sets` maps set names to elements and their values."""

    def __init__(self) -> None:
        self.sets: Sets = {}
        self.maps: set[str] = set()
        self.chains: set[str] = set()
        self.loaded = False
        self.generation = 0
        self.transactions: list[str] = []
        self.fail_next: int = 0

    def run(self, transaction: Transaction) -> None:
        """Carry out a transaction.

        Raises NftError when nothing was changed.
        """
        text = str(transaction)
        if self.fail_next:
            code, self.fail_next = self.fail_next, 0
            raise NftError(code, os.strerror(code))
        state = self._after(text)
        self.sets, self.maps, self.chains, self.loaded = state.sets, state.maps, state.chains, state.loaded
        self.generation += state.made
        self.transactions.append(text)

    def check(self, transaction: Transaction) -> None:
        """Find out whether a transaction would be carried out; nothing is changed.

        Raises NftError when it would be refused.
        """
        self._after(str(transaction))

    def _after(self, text: str) -> "_Contents":
        sets = {name: dict(elements) for name, elements in self.sets.items()}
        state = _Contents(sets, self.maps, self.chains, self.loaded)
        for command in _commands(text):
            state.do(command)
        return state

    def dump(self) -> str:
        """Return all elements, a line each, sorted: the golden form of tests."""
        lines = (
            f"{n} {k}{' : ' + v if v else ''}" for n, elements in self.sets.items() for k, v in elements.items()
        )
        return "\n".join(sorted(lines))


class _Contents:
    def __init__(self, sets: Sets, maps: set[str], chains: set[str], loaded: bool) -> None:
        self.sets = sets
        self.maps = set(maps)
        self.chains = set(chains)
        self.loaded = loaded
        self.made = 0

    def do(self, command: str) -> None:
        if match := _TABLE.match(command):
            if match[1] == "delete":
                self.sets, self.maps, self.chains, self.loaded = {}, set(), set(), False
        elif match := _FLUSH.match(command):
            kind, name = match.groups()
            if name not in self.sets or (kind == "map") is not (name in self.maps):
                raise NftError(errno.ENOENT, f"no {kind} {name}")
            self.sets[name].clear()
        elif match := _DELETED_CHAIN.match(command):
            if match[1] not in self.chains:
                raise NftError(errno.ENOENT, f"no chain {match[1]}")
            self.chains.remove(match[1])
        elif match := _ELEMENTS.match(command):
            self._elements(match[1], match[2], match[3])
        else:
            self.made += not self.loaded
            self.loaded = True
            for kind, name in _DECLARATION.findall(command):
                self.sets.setdefault(name, {})
                self.maps.update({name} if kind == "map" else ())
            self.chains.update(_CHAIN.findall(command))
            if missing := set(_LOOKUP.findall(command)) - self.sets.keys():
                raise NftError(errno.ENOENT, f"no set {min(missing)}")

    def _elements(self, verb: str, name: str, body: str) -> None:
        if name not in self.sets:
            raise NftError(errno.ENOENT, f"no set {name}")
        change: Callable[[dict[str, str], str, str], None] = _add if verb == "add" else _delete
        for item in body.split(", "):
            key, _, value = item.partition(" : ")
            change(self.sets[name], key, value)


def _add(elements: dict[str, str], key: str, value: str) -> None:
    if elements.setdefault(key, value) != value:
        raise NftError(errno.EEXIST, f"{key} exists with another value")


def _delete(elements: dict[str, str], key: str, _value: str) -> None:
    if key not in elements:
        raise NftError(errno.ENOENT, f"no element {key}")
    del elements[key]


def _is_command(line: str) -> bool:
    return line.startswith(_COMMANDS)


def _commands(text: str) -> list[str]:
    """Split into commands; a script that was loaded stays one piece, since its lines are indented or braces."""
    commands: list[str] = []
    for line in text.splitlines():
        if _is_command(line):
            commands.append(line)
        elif commands and not _is_command(commands[-1]):
            commands[-1] += "\n" + line
        else:
            commands.append(line)
    return commands
