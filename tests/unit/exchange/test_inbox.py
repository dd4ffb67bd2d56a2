"""The inbox keeps the last version of what waits, and any order of events ends in the same objects."""

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsproxy.exchange.inbox import (
    MOST_NOTICES,
    ApiServers,
    Changed,
    Inbox,
    Kind,
    Listed,
    LockAcquired,
    NodeAddressesChanged,
    Removed,
    SourceFailed,
)
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.notification import RulesChanged, VipsChanged
from tests.support.build import service, slice_of
from tests.support.work import no_collection

WEB = service("web")


def version(number):
    return service("web", affinity_seconds=number)


def changed(item, **more):
    return Changed(Kind.SERVICE, item.key, item, **more)


def taken(*events):
    inbox = Inbox()
    for event in events:
        inbox.put(event)
    return inbox.take(0)


def test_the_last_version_of_an_object_replaces_the_one_that_waits():
    assert taken(*(changed(version(n)) for n in range(100))) == [changed(version(99), versions=100)]


def test_a_deletion_replaces_what_waits_and_a_new_object_the_deletion():
    assert taken(changed(WEB), Removed(Kind.SERVICE, "default/web")) == [Removed(Kind.SERVICE, "default/web", 2)]
    assert taken(Removed(Kind.SERVICE, "default/web"), changed(WEB)) == [changed(WEB, versions=2)]


def test_objects_of_two_kinds_with_one_name_are_two():
    pods = slice_of("web", "10.244.1.1", name="web")
    events = [changed(WEB), Changed(Kind.ENDPOINT_SLICE, "default/web", pods)]
    assert taken(*events) == events


def test_a_list_replaces_all_that_waits_of_its_kind_and_nothing_else():
    other = Changed(Kind.ENDPOINT_SLICE, "default/web-4", slice_of("web", "10.244.1.1"))
    last = Listed(Kind.SERVICE, {"default/web": version(7)})
    assert taken(Listed(Kind.SERVICE, {}), changed(WEB), other, last) == [other, last]


def test_what_comes_after_a_list_stays_after_it():
    first, then = Listed(Kind.SERVICE, {"default/web": version(1)}), changed(version(2))
    assert taken(changed(WEB), first, then) == [first, then]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([changed(version(3))], ({"default/web": version(3)}, set())),
        ([Listed(Kind.SERVICE, {"default/web": version(4)})], ({"default/web": version(4)}, set())),
        ([Listed(Kind.SERVICE, {}, frozenset({"default/web"}))], ({}, {"default/web"})),
        ([Listed(Kind.SERVICE, {})], ({}, set())),
        ([Removed(Kind.SERVICE, "default/web")], ({}, set())),
        ([], ({}, {"default/web"})),
    ],
)
def test_an_object_that_a_list_could_not_read_keeps_the_version_that_waits(events, expected):
    [found] = taken(*events, Listed(Kind.SERVICE, {}, frozenset({"default/web"})))
    assert (found.objects, found.kept) == expected


NAMES = ["a", "b", "c"]
ITEMS = st.builds(lambda name, n: service(name, affinity_seconds=n), st.sampled_from(NAMES), st.integers(0, 3))
LISTS = st.tuples(st.lists(ITEMS, max_size=3), st.frozensets(st.sampled_from(NAMES))).map(
    lambda pair: Listed(
        Kind.SERVICE,
        {item.key: item for item in pair[0]},
        frozenset(f"default/{name}" for name in pair[1]) - {item.key for item in pair[0]},
    )
)
EVENTS = st.lists(
    st.one_of(
        ITEMS.map(changed), st.sampled_from(NAMES).map(lambda n: Removed(Kind.SERVICE, f"default/{n}")), LISTS
    )
)


@given(before=EVENTS, after=EVENTS)
def test_what_is_taken_together_ends_in_the_same_objects_as_one_by_one(before, after):
    at_once, one_by_one = Store("node1"), Store("node1")
    for event in (*before, *after):
        one_by_one.apply(event)
    inbox = Inbox()
    for part in (before, after):
        for event in part:
            inbox.put(event)
        found = inbox.take(0)
        assert len(found) <= 1 + len(NAMES)
        for event in found:
            at_once.apply(event)
    assert at_once.services == one_by_one.services


def test_single_facts_wait_once():
    events = [
        NodeAddressesChanged(),
        ApiServers(()),
        LockAcquired(),
        ApiServers(((b"abcd", 1),)),
        NodeAddressesChanged(),
    ]
    assert taken(*events) == [events[2], events[3], events[4]]
    assert taken(SourceFailed("a")) == [SourceFailed("a")]


@pytest.mark.parametrize("notice", [VipsChanged(), RulesChanged(7)])
def test_notices_wait_one_by_one_until_they_are_too_many(notice):
    assert taken(notice, notice) == [notice, notice]
    found = taken(*[notice] * (MOST_NOTICES * 3))
    assert len(found) <= MOST_NOTICES
    assert found[0].unsure
    assert found[1] == notice


def test_a_taker_waits_for_the_first_event_and_for_no_longer_than_asked():
    inbox = Inbox()
    assert inbox.take(0.01) == []
    thread = threading.Timer(0.05, inbox.put, [LockAcquired()])
    thread.start()
    assert inbox.take(None) == [LockAcquired()]
    thread.join()


def test_many_writers_lose_nothing():
    inbox, seen, count = Inbox(), {}, range(500)
    writers = [
        threading.Thread(
            target=lambda w=w: [inbox.put(changed(service(f"s{w}", affinity_seconds=n))) for n in count]
        )
        for w in range(4)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers) or len(seen) < 4:
        seen.update({event.key: event for event in inbox.take(0.1)})
    for event in inbox.take(0):
        seen[event.key] = event
    assert {key: event.object.affinity_seconds for key, event in seen.items()} == {
        f"default/s{w}": 499 for w in range(4)
    }


def test_an_event_costs_the_same_however_many_wait():
    sizes = []
    for count in (10, 1000):
        inbox = Inbox()
        for n in range(count):
            inbox.put(changed(service(f"s{n}")))
        calls = 0

        def counted(_frame, event, _argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        event, before = changed(version(1)), sys.getprofile()
        with no_collection():
            sys.setprofile(counted)
            try:
                inbox.put(event)
            finally:
                sys.setprofile(before)
        sizes.append(calls)
    assert sizes[0] == sizes[1]
