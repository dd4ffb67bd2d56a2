"""Changes of elements as netlink messages, carried out as one transaction of the kernel.

libnftables lists all chains and sets before each transaction, which costs three times as much as everything else
that a change of one endpoint needs, and it needs more for an element than the kernel does. So rules go through
libnftables, and what changes nothing but elements goes to the kernel from here.

Facts: net/netfilter/nfnetlink.c (nfnetlink_rcv_batch), nf_tables_api.c (nft_add_set_elem, nft_del_setelem).
"""

import os
import struct
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain, repeat
from operator import add
from typing import Self

from ipvsproxy.base import names
from ipvsproxy.kernel.tables import SET_TABLES, TABLE, new_transaction
from ipvsproxy.kernel.wire.netlink import NLM_F_ACK, NLM_F_CREATE, KernelError, Wire, attribute, message
from ipvsproxy.kernel.wire.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NFNL_SUBSYS_NFTABLES,
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWSETELEM,
    NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT,
    NFTA_LIST_ELEM,
    NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_KEY_END,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
    NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE,
    NLA_F_NESTED,
    TABLE_FAMILIES,
)
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.ruleset.codec import pack_interval, pack_keys, pack_values, pack_verdict, texts
from ipvsproxy.ruleset.elements import BySet, Element, by_set
from ipvsproxy.ruleset.schema import Field, SetSchema
from nft import Libnftables, NftError, Transaction

MOST_BYTES = 60_000
"""Of elements in one message: the length of an attribute has 16 bits."""
ATTRIBUTE_HEADER = 4
"""Bytes of an attribute's length and type."""
CODE = struct.Struct(">i")
NEW, DELETE = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELSETELEM
FLAGS = {NEW: NLM_F_CREATE, DELETE: 0}
BATCH = NFGENMSG.pack(0, 0, NFNL_SUBSYS_NFTABLES)
VERDICTS = (Field.VERDICT,)
BEGIN, END = message(NFNL_MSG_BATCH_BEGIN, 0, BATCH), message(NFNL_MSG_BATCH_END, 0, BATCH)


class ElementTransaction(Transaction):
    """A transaction of nothing but elements, by set; its text is made only for those who read it.

    What is `gone` goes before what is to `come`.
    """

    def __init__(self, gone: BySet, come: BySet) -> None:
        super().__init__(TABLE, SET_TABLES)
        self.gone = gone
        self.come = come

    @classmethod
    def of(cls, steps: Sequence[ElementStep]) -> Self:
        """Return the transaction that carries out some steps."""
        return cls(
            by_set([(step.slot, "") for step in steps if step.value is None or step.replaces]),
            by_set([(step.slot, step.value) for step in steps if step.value is not None]),
        )

    def __bool__(self) -> bool:
        return bool(self.gone or self.come)

    def __str__(self) -> str:
        written = new_transaction()
        self.write(written)
        return str(written)

    def write(self, transaction: Transaction) -> None:
        """Have another transaction do the same, too."""
        gone, come = (texts(chain.from_iterable(found.values())) for found in (self.gone, self.come))
        transaction.delete_elements((kind, key) for kind, key, _ in gone)
        transaction.add_elements(come)

    @property
    def is_packed(self) -> bool:
        """Whether all elements have bytes of their own."""
        return all(kind.is_packed for kind in (*self.gone, *self.come))


class KernelNft:
    """A client for our tables: libnftables, but for transactions of elements."""

    def __init__(self) -> None:
        self._libnftables = Libnftables()
        self._wire = Wire(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._wire.close()

    def run(self, transaction: Transaction) -> None:
        """Carry out a transaction.

        Raises NftError when nothing was changed, or when that is not known: the reply was lost (ENOBUFS). Then a
        notification tells of what was changed, which counts as another program's (`kernel.transactions`).
        """
        if isinstance(transaction, ElementTransaction) and transaction.is_packed:
            self._change(transaction)
        else:
            self._libnftables.run(transaction)

    def check(self, transaction: Transaction) -> None:
        """Have a transaction judged without carrying it out. Raises NftError when it would be refused."""
        self._libnftables.check(transaction)

    def _change(self, transaction: ElementTransaction) -> None:
        requests = list(_requests(transaction))
        if not requests:
            return
        last = len(requests) - 1
        pieces = [
            message(kind, FLAGS[kind] | (NLM_F_ACK if index == last else 0), body, index + 1)
            for index, (kind, _, body) in enumerate(requests)
        ]
        try:
            failure = self._wire.transaction([BEGIN, *pieces, END])
        except KernelError as error:
            raise NftError(error.errno, str(error)) from error
        if failure:
            index, code = failure
            where = f" (set {requests[index - 1][1]})" if index else ""
            raise NftError(code, f"{os.strerror(code)}{where}")


def _requests(transaction: ElementTransaction) -> Iterator[tuple[int, SetSchema, bytes]]:
    """Yield type, set and body of each message."""
    for request, found in ((DELETE, transaction.gone), (NEW, transaction.come)):
        for kind, elements in found.items():
            for some in _lists(_encoded(kind, elements, with_values=request == NEW)):
                yield request, kind, _head(kind) + _nested(NFTA_SET_ELEM_LIST_ELEMENTS, some)


@cache
def _head(kind: SetSchema) -> bytes:
    place = attribute(NFTA_SET_ELEM_LIST_TABLE, names.TABLE.encode() + b"\0")
    place += attribute(NFTA_SET_ELEM_LIST_SET, kind.name.encode() + b"\0")
    return NFGENMSG.pack(TABLE_FAMILIES[kind.table], 0, 0) + place


def _lists(elements: Sequence[bytes]) -> Sequence[bytes]:
    """Join elements to lists that an attribute can hold."""
    whole = b"".join(elements)
    if len(whole) <= MOST_BYTES:
        return (whole,)
    most = MOST_BYTES // max(map(len, elements))
    return [b"".join(elements[at : at + most]) for at in range(0, len(elements), most)]


def _encoded(kind: SetSchema, elements: Sequence[Element], *, with_values: bool) -> list[bytes]:
    """Return elements of a set as bytes; those of one size have the same headers."""
    data = _data(kind, elements) if with_values and kind.value else [b""] * len(elements)
    if kind.interval:
        ends = [pack_interval(slot) for slot, _ in elements]
        keys = [first for first, _ in ends]
        data = [_last_key(last) + value for (_, last), value in zip(ends, data, strict=True)]
    else:
        keys = pack_keys(kind, elements)
    size = len(keys[0])
    if filling := bytes(-size % 4):
        data = [filling + behind for behind in data]
    # By `map`, which takes half of what a loop would.
    headers = map(_headers, repeat(size), map(len, data))
    return [*map(add, map(add, headers, keys), data)]


def _last_key(key: bytes) -> bytes:
    return _nested(NFTA_SET_ELEM_KEY_END, attribute(NFTA_DATA_VALUE, key))


@lru_cache(maxsize=256)
def _headers(key: int, behind: int) -> bytes:
    """Return the headers of an element, its key, and the key's value, by the sizes of key and what follows."""
    nested_key = _nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, bytes(key)))
    more = bytes(behind - -key % 4)
    return _nested(NFTA_LIST_ELEM, nested_key + more)[: 3 * ATTRIBUTE_HEADER]


def _data(kind: SetSchema, elements: Sequence[Element]) -> list[bytes]:
    """Return what stands behind the keys of a map."""
    if kind.value == VERDICTS:
        return [_verdict(str(value)) for _, value in elements]
    packed = pack_values(kind, elements)
    return [*map(_value_headers(len(packed[0])).__add__, packed)]


@lru_cache(maxsize=64)
def _value_headers(size: int) -> bytes:
    """Return the headers of data and of its value, which is a multiple of four bytes long."""
    return _nested(NFTA_SET_ELEM_DATA, attribute(NFTA_DATA_VALUE, bytes(size)))[: 2 * ATTRIBUTE_HEADER]


@cache
def _verdict(text: str) -> bytes:
    """There are few: one for each chain that elements lead to."""
    code, chain = pack_verdict(text)
    verdict = attribute(NFTA_VERDICT_CODE, CODE.pack(code))
    verdict += attribute(NFTA_VERDICT_CHAIN, chain.encode() + b"\0") if chain else b""
    return _nested(NFTA_SET_ELEM_DATA, _nested(NFTA_DATA_VERDICT, verdict))


def _nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, payload)
