"""Changes to one table, in order, as the nft text that libnftables reads.

Text goes in and not JSON: errors then point at the token, and every reader knows the language. Elements are
grouped by set into few commands. Names, keys and values are checked against the few characters that elements
can consist of, so nothing from outside can become a command; `ValueError` is raised at once for others.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]*\Z")
_COMMENT = re.compile(r"[a-zA-Z0-9_.:+ ,-]{0,127}\Z")
_EXPRESSIONS = re.compile(r'(?:[a-zA-Z0-9_.:/*\-, ]++|"[a-zA-Z0-9_.*\-]++")++\Z')


@dataclass(frozen=True)
class Table:
    """A table by family and name, such as `inet filter`."""

    family: str
    name: str

    def __post_init__(self) -> None:
        if not _NAME.match(self.family) or not _NAME.match(self.name):
            raise ValueError(f"not a table: {self.family!r} {self.name!r}")

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


@dataclass
class Transaction:
    """Changes to one table; `str()` is exactly what is sent. Commands take effect together or not at all.

    `set_tables` has the tables of those sets that are not in `table`, by the names of the sets.
    """

    table: Table
    set_tables: Mapping[str, Table] = field(default_factory=dict)
    _commands: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self._commands) + "\n"

    def __bool__(self) -> bool:
        return bool(self._commands)

    def delete_table(self) -> None:
        """Delete the table and those of `set_tables`, which need not exist (nft before 1.0.7 has no `destroy`)."""
        for table in dict.fromkeys((self.table, *self.set_tables.values())):
            self._commands += [f"add table {table}", f"delete table {table}"]

    def delete_tables(self, tables: Iterable[Table]) -> None:
        """Delete other tables, which must exist."""
        self._commands += [f"delete table {table}" for table in tables]

    def add_table(self, comment: str) -> None:
        """Add the table with a comment; kernels before 5.10 forget the comment."""
        if not _COMMENT.match(comment):
            raise ValueError(f"not a comment: {comment!r}")
        self._commands.append(f'add table {self.table} {{ comment "{comment}"; }}')

    def load(self, script: str) -> None:
        """Add the tables, sets, maps and chains of a script; the script is trusted."""
        self._commands.append(script)

    def add_chains(self, chains: Mapping[str, Iterable[str]]) -> None:
        """Add chains without a hook by name, with their rules, which are trusted."""
        lines = [f"table {self.table} {{"]
        for name, rules in chains.items():
            lines += [f"\tchain {_name(name)} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
        self._commands.append("\n".join([*lines, "}"]))

    def delete_chains(self, names: Iterable[str]) -> None:
        """Delete chains, all of which must exist, and to which no rule leads."""
        self._commands += [f"delete chain {self.table} {_name(name)}" for name in names]

    def insert_rules(self, chain: str, rules: Iterable[str]) -> None:
        """Put rules, which are trusted, at the head of a chain."""
        self._commands += [f"insert rule {self.table} {_name(chain)} {rule}" for rule in rules]

    def replace_rules(self, chain: str, rules: Iterable[str]) -> None:
        """Give a chain these rules, which are trusted, in place of all others."""
        self._commands.append(f"flush chain {self.table} {_name(chain)}")
        self._commands += [f"add rule {self.table} {chain} {rule}" for rule in rules]

    def flush_sets(self, names: Iterable[str]) -> None:
        """Take all elements out of some sets; maps are no sets to this command."""
        self._flush("set", names)

    def flush_maps(self, names: Iterable[str]) -> None:
        """Take all elements out of some maps."""
        self._flush("map", names)

    def _flush(self, kind: str, names: Iterable[str]) -> None:
        for name in names:
            if not _NAME.match(name):
                raise ValueError(f"not a {kind}: {name!r}")
            self._commands.append(f"flush {kind} {self._place(name)}")

    def _place(self, name: str) -> str:
        return f"{self.set_tables.get(name, self.table)} {name}"

    def add_elements(self, elements: Iterable[tuple[str, str, str]]) -> None:
        """Add elements, given as (set, key, value); the value is '' for plain sets."""
        by_set: defaultdict[str, list[str]] = defaultdict(list)
        for name, key, value in elements:
            by_set[name].append(f"{key} : {value}" if value else key)
        self._elements("add", by_set)

    def delete_elements(self, elements: Iterable[tuple[str, str]]) -> None:
        """Delete elements, given as (set, key), all of which must exist."""
        by_set: defaultdict[str, list[str]] = defaultdict(list)
        for name, key in elements:
            by_set[name].append(key)
        self._elements("delete", by_set)

    def _elements(self, verb: str, by_set: Mapping[str, list[str]]) -> None:
        for name, texts in by_set.items():
            if not _NAME.match(name):
                raise ValueError(f"not a set: {name!r}")
            self._commands.append(f"{verb} element {self._place(name)} {{ {_checked(name, texts)} }}")


def _name(chain: str) -> str:
    if not _NAME.match(chain):
        raise ValueError(f"not a chain: {chain!r}")
    return chain


def _checked(name: str, texts: list[str]) -> str:
    """Join elements; all of them are looked at together, which is ten times faster than one by one."""
    joined = ", ".join(texts)
    if not _EXPRESSIONS.match(joined) or joined.count(",") != len(texts) - 1 or not all(texts):
        wrong = next((text for text in texts if not _EXPRESSIONS.match(text) or "," in text), joined)
        raise ValueError(f"not an element of {name}: {wrong!r}")
    return joined
