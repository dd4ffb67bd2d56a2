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
from ipvsproxy.ruleset.codec import pack_key, pack_value, pack_verdict, texts
from ipvsproxy.ruleset.elements import ElementKey, Value
from ipvsproxy.ruleset.schema import SetSchema
from nft import Libnftables, NftError, Transaction

MOST_BYTES = 60_000
"""Of elements in one message: the length of an attribute has 16 bits."""
ATTRIBUTE_HEADER = 4
"""Bytes of an attribute's length and type."""
CODE = struct.Struct(">i")
NEW, DELETE = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELSETELEM
FLAGS = {NEW: NLM_F_CREATE, DELETE: 0}
BATCH = NFGENMSG.pack(0, 0, NFNL_SUBSYS_NFTABLES)
BEGIN, END = message(NFNL_MSG_BATCH_BEGIN, 0, BATCH), message(NFNL_MSG_BATCH_END, 0, BATCH)


class ElementTransaction(Transaction):
    """A transaction of nothing but elements; its text is made only for those who read it."""

    def __init__(self, steps: Sequence[ElementStep]) -> None:
        super().__init__(TABLE, SET_TABLES)
        self.steps = steps

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __str__(self) -> str:
        written = new_transaction()
        write_steps(written, self.steps)
        return str(written)


def write_steps(transaction: Transaction, steps: Sequence[ElementStep]) -> None:
    """Have a transaction carry out steps: what goes before what comes."""
    gone = texts((step.slot, "") for step in steps if _goes(step))
    transaction.delete_elements((kind, key) for kind, key, _ in gone)
    transaction.add_elements(texts((step.slot, step.value) for step in steps if step.value is not None))


def _goes(step: ElementStep) -> bool:
    return step.value is None or step.replaces


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
        if isinstance(transaction, ElementTransaction) and all(is_packed(step.slot) for step in transaction.steps):
            self._change(transaction.steps)
        else:
            self._libnftables.run(transaction)

    def check(self, transaction: Transaction) -> None:
        """Have a transaction judged without carrying it out. Raises NftError when it would be refused."""
        self._libnftables.check(transaction)

    def _change(self, steps: Sequence[ElementStep]) -> None:
        requests = list(_requests(steps))
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


def is_packed(slot: ElementKey) -> bool:
    """Whether an element has bytes of its own: intervals of one field are two elements, and may meet others."""
    return slot.set.is_concatenated or not slot.set.interval


def _requests(steps: Sequence[ElementStep]) -> Iterator[tuple[int, SetSchema, bytes]]:
    """Yield type, set and body of each message: what goes before what comes."""
    gone: dict[SetSchema, list[bytes]] = {}
    come: dict[SetSchema, list[bytes]] = {}
    for step in steps:
        kind, value = step.slot.set, step.value
        key, last = pack_key(step.slot)
        end = _nested(NFTA_SET_ELEM_KEY_END, attribute(NFTA_DATA_VALUE, last)) if last else b""
        if value is None or step.replaces:
            gone.setdefault(kind, []).append(_element(key, end))
        if value is not None:
            come.setdefault(kind, []).append(_element(key, end + _data(kind, value) if value != "" else end))
    for request, elements in ((DELETE, gone), (NEW, come)):
        for kind, encoded in elements.items():
            for some in _lists(encoded):
                yield request, kind, _head(kind) + _nested(NFTA_SET_ELEM_LIST_ELEMENTS, b"".join(some))


def _head(kind: SetSchema) -> bytes:
    place = attribute(NFTA_SET_ELEM_LIST_TABLE, names.TABLE.encode() + b"\0")
    place += attribute(NFTA_SET_ELEM_LIST_SET, kind.name.encode() + b"\0")
    return NFGENMSG.pack(TABLE_FAMILIES[kind.table], 0, 0) + place


def _lists(elements: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut elements into lists that an attribute can hold."""
    most = MOST_BYTES // max(map(len, elements))
    return (elements[at : at + most] for at in range(0, len(elements), most))


def _element(key: bytes, behind: bytes) -> bytes:
    """Return an element with its key and what stands behind it; elements of one size have the same headers."""
    return _headers(len(key), len(behind)) + key + bytes(-len(key) % 4) + behind


@lru_cache(maxsize=256)
def _headers(key: int, behind: int) -> bytes:
    """Return the headers of an element, its key, and the key's value, by sizes."""
    nested_key = _nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, bytes(key)))
    return _nested(NFTA_LIST_ELEM, nested_key + bytes(behind))[: 3 * ATTRIBUTE_HEADER]


def _data(kind: SetSchema, value: Value) -> bytes:
    if isinstance(value, str):
        return _verdict(value)
    packed = pack_value(kind, value)
    return _value_headers(len(packed)) + packed + bytes(-len(packed) % 4)


@lru_cache(maxsize=64)
def _value_headers(size: int) -> bytes:
    """Return the headers of data and of its value."""
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
