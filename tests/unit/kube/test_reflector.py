"""The reflector against a script: no server, no clock, no sleep."""

import json

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_ip
from ipvsproxy.exchange.inbox import Changed, Kind, Listed, Removed, RightRefused
from ipvsproxy.kube import api, decode, reflector
from ipvsproxy.kube.api import PAGE_SIZE, RequestFailed, lines
from ipvsproxy.kube.ceilings import ObjectRoom
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.reflector import Reflector
from tests.support.apiserver import endpoint_slice, node, service, status
from tests.support.recording import RecordingInbox


class ScriptedReply:
    """An answer; a chunk that is an exception is raised."""

    def __init__(self, *chunks, code=200, headers=None):
        self.chunks_ = [json.dumps(c).encode() + b"\n" if isinstance(c, dict) else c for c in chunks]
        self.status, self.headers = code, headers or {}
        self.closed = False

    def read(self, most=1 << 40):
        body = b"".join(self.chunks())
        if len(body) > most:
            raise api.TooLarge(most)
        return body

    def chunks(self):
        for chunk in self.chunks_:
            if isinstance(chunk, Exception):
                raise chunk
            if callable(chunk):
                chunk()
            else:
                yield chunk

    def interrupt(self):
        pass

    def close(self):
        self.closed = True


class ScriptedTransport:
    """A transport that gives prepared answers and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked, self.limits, self.refreshed = list(answers), [], [], 0

    def _next(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def list(self, _kind, limit, continue_, resource_version):
        self.limits.append(limit)
        self.asked.append(("list", continue_, resource_version))
        return self._next()

    def watch(self, _kind, resource_version, timeout_seconds):
        self.asked.append(("watch", resource_version, timeout_seconds))
        return self._next()

    def refresh(self):
        self.refreshed += 1


class SteppingClock:
    """Time that passes only in the answers: each look takes `step` seconds."""

    def __init__(self):
        self.now, self.step = 0.0, 2.0

    def __call__(self):
        self.now += self.step
        return self.now


class ReflectorRun:
    """A reflector that follows a script, and what came of it."""

    def __init__(self, *answers, kind=Kind.SERVICE):
        self.script, self.inbox, self.clock = ScriptedTransport(*answers), RecordingInbox(), SteppingClock()
        pace = Pace(clock=self.clock, uniform=lambda _, high: high, randint=lambda low, _: low)
        self.reflector = Reflector(kind, self.script, self.inbox, pace)
        self.replies = [answer for answer in answers if isinstance(answer, ScriptedReply)]
        self.waits = []

    def __call__(self):
        """Take steps until the script is over; return the events."""
        with capture_logs() as self.logs:
            while self.script.answers:
                self.waits.append(self.reflector.step())
        assert all(reply.closed for reply in self.replies)
        return self.events()

    def events(self):
        return self.inbox.take(0)

    def said(self, level="warning"):
        return [entry["event"] for entry in self.logs if entry["log_level"] == level]


def page(*objects, version="10", more="", kind="Service"):
    items = [{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in objects]
    return ScriptedReply(
        {"kind": f"{kind}List", "metadata": {"resourceVersion": version, "continue": more}, "items": items}
    )


def event(type_, obj, version):
    return {"type": type_, "object": {**obj, "metadata": {**obj["metadata"], "resourceVersion": version}}}


def bookmark(version):
    return {"type": "BOOKMARK", "object": {"kind": "Service", "metadata": {"resourceVersion": version}}}


def gone(reason="Expired"):
    return status(410, reason, "too old resource version")


def brief(events):
    """Reduce events to what tests look at."""
    found = []
    for item in events:
        if isinstance(item, Listed):
            found.append((sorted(item.objects), sorted(item.kept)))
        elif isinstance(item, Changed):
            found.append((item.key, format_ip(item.object.cluster_ips[0])))
        else:
            assert isinstance(item, Removed)
            found.append((item.key, None))
    return found


BAD = service("bad", ports=[{"port": 0}])


def test_a_list_then_a_watch():
    run = ReflectorRun(
        page(service("a"), service("b"), version="10"),
        ScriptedReply(
            event("ADDED", service("c"), "11"),
            event("MODIFIED", service("a", clusterIP="10.96.0.99"), "12"),
            event("DELETED", service("b"), "13"),
        ),
        ScriptedReply(),
    )
    assert brief(run()) == [
        (["default/a", "default/b"], []),
        ("default/c", "10.96.0.10"),
        ("default/a", "10.96.0.99"),
        ("default/b", None),
    ]
    assert run.script.asked == [("list", "", ""), ("watch", "10", 300), ("watch", "13", 300)]
    assert run.waits == [0, 0, 0]
    assert run.said() == []


@pytest.mark.parametrize(
    ("kind", "obj", "key"),
    [(Kind.ENDPOINT_SLICE, endpoint_slice(), "default/web-abc"), (Kind.NODE, node(), "node1")],
)
def test_the_other_kinds(kind, obj, key):
    run = ReflectorRun(page(obj, kind=kind), ScriptedReply(event("DELETED", obj, "11")), kind=kind)
    listed, removed = run()
    assert (listed.kind, set(listed.objects)) == (kind, {key})
    assert removed == Removed(kind, key)


def test_when_a_change_began_comes_with_the_change():
    slow = endpoint_slice()
    slow["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-09-21T14:13:20Z"}
    run = ReflectorRun(
        page(kind=Kind.ENDPOINT_SLICE), ScriptedReply(event("ADDED", slow, "11")), kind=Kind.ENDPOINT_SLICE
    )
    assert run()[1].triggered == 1_790_000_000


def test_pages_make_one_list():
    run = ReflectorRun(
        page(service("a"), more="t1"), page(service("b"), more="t2", version="10"), page(service("c"))
    )
    assert brief(run()) == [(["default/a", "default/b", "default/c"], [])]
    assert run.script.asked == [("list", "", ""), ("list", "t1", ""), ("list", "t2", "")]


@pytest.mark.parametrize("items", ["null", "[]"])
def test_an_empty_list(items):
    run = ReflectorRun(
        ScriptedReply(
            b'{"kind": "ServiceList", "metadata": {"resourceVersion": "5"}, "items": %s}' % items.encode()
        )
    )
    assert brief(run()) == [([], [])]


@pytest.mark.parametrize(
    "second",
    [
        ScriptedReply(gone(), code=410),
        ScriptedReply(b'{"kind": "ServiceList", "metadata": {"resourceVersion": "10"}, "items": [{"meta'),
        ScriptedReply(b'{"kind": "ServiceList"', RequestFailed("cut")),
        ScriptedReply(status(500, "InternalError", "x"), code=500),
        RequestFailed("connection refused"),
        page(service("b"), more="t1"),
    ],
)
def test_a_list_that_ends_early_is_not_acted_on(second):
    run = ReflectorRun(
        page(service("a"), more="t1"),
        second,
        page(service("c"), version="20"),
        ScriptedReply(RequestFailed("over")),
    )
    assert brief(run()) == [(["default/c"], [])]
    assert run.script.asked[2:] == [("list", "", ""), ("watch", "20", 300)]


def test_a_list_whose_pages_expire_is_asked_for_in_one_piece():
    expired = [
        ScriptedReply({"type": "ERROR", "object": gone()}),
        page(service("a"), more="t1"),
        ScriptedReply(gone(), code=410),
    ]
    run = ReflectorRun(
        page(), *expired, page(service("c")), ScriptedReply({"type": "ERROR", "object": gone()}), page()
    )
    assert brief(run()) == [([], []), (["default/c"], []), ([], [])]
    assert run.script.limits == [PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, 0, PAGE_SIZE]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<html>log in first</html>",
        b'{"kind": "Status", "status": "Success"}',
        b'{"kind": "ServiceList", "items": []}',
        b'{"kind": "ServiceList", "metadata": {}, "items": []}',
        b'{"kind": "ServiceList", "metadata": {"resourceVersion": ""}, "items": []}',
        b'{"kind": "ServiceList", "metadata": {"resourceVersion": "1"}}',
        b'{"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": []}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_is_no_list_is_not_an_empty_list(body):
    run = ReflectorRun(ScriptedReply(body), page(service("a")))
    assert brief(run()) == [(["default/a"], [])]
    assert run.waits == [0.5, 0]


def test_a_malformed_object_affects_nothing_else():
    run = ReflectorRun(
        page(service("a"), BAD, service("")),
        ScriptedReply(event("MODIFIED", service("a", ports="x"), "11"), event("ADDED", service("b"), "12")),
        ScriptedReply(gone(), code=410),
        page(BAD, service("a", ports="x")),
        ScriptedReply(event("MODIFIED", service("bad"), "21"), event("MODIFIED", BAD, "22")),
    )
    assert brief(run()) == [
        (["default/a"], ["default/bad"]),
        ("default/b", "10.96.0.10"),
        ([], ["default/a", "default/bad"]),
        ("default/bad", "10.96.0.10"),
    ]
    refused = [e for e in run.logs if e["event"] == messages.OBJECT_REFUSED]
    assert [e["object"] for e in refused] == ["default/bad", "default/a", "default/bad"]
    assert refused[0] == {
        "event": messages.OBJECT_REFUSED,
        "log_level": "warning",
        "kind": "Service",
        "object": "default/bad",
        "field": "spec.ports[0].port",
        "err": "Expected `int` >= 1",
    }
    assert messages.OBJECT_ACCEPTED in run.said("info")
    assert messages.NAMELESS_IGNORED in run.said()


def test_complaints_are_reported_once_while_they_are_the_same():
    odd = service("a", externalIPs=["x"])
    run = ReflectorRun(
        page(odd), ScriptedReply(event("MODIFIED", odd, "11"), event("MODIFIED", service("a"), "12"))
    )
    assert len(brief(run())) == 3
    assert run.said() == [messages.OBJECT_PART_IGNORED]
    assert run.said("info") == [messages.OBJECT_ACCEPTED]


@pytest.mark.parametrize("other", [service("a", clusterIP="None"), service("a", type="ExternalName")])
def test_an_object_that_is_no_longer_proxied_is_removed(other):
    run = ReflectorRun(
        page(service("a"), service("b", clusterIP="None")), ScriptedReply(event("MODIFIED", other, "11"))
    )
    assert brief(run()) == [(["default/a"], []), ("default/a", None)]


def test_a_deletion_needs_only_a_name():
    """The last state that comes with it need not be one we could use."""
    tomb = {
        "type": "DELETED",
        "object": {"metadata": {"name": "a", "namespace": "default", "resourceVersion": "11"}},
    }
    run = ReflectorRun(page(service("a"), BAD), ScriptedReply(tomb, event("DELETED", BAD, "12")), ScriptedReply())
    assert brief(run())[1:] == [("default/a", None), ("default/bad", None)]
    assert run.script.asked[-1][1] == "12"


def test_bookmarks_only_move_the_version():
    run = ReflectorRun(
        page(), ScriptedReply(bookmark("50")), ScriptedReply(bookmark("60"), bookmark("70")), ScriptedReply()
    )
    assert brief(run()) == [([], [])]
    assert [asked[1] for asked in run.script.asked[1:]] == ["10", "50", "70"]


@pytest.mark.parametrize(
    "expired",
    [
        ScriptedReply(gone(), code=410),
        ScriptedReply(gone("Gone"), code=410),
        ScriptedReply(b"gone", code=410),
        ScriptedReply({"type": "ERROR", "object": gone()}),
        ScriptedReply({"type": "ERROR", "object": {**gone(), "code": 0}}),
        ScriptedReply({"type": "ERROR", "object": {**gone("Gone"), "code": 410}}),
    ],
)
def test_gone_means_list_again_at_once(expired):
    run = ReflectorRun(page(service("a")), expired, page(service("b"), version="20"), ScriptedReply())
    assert brief(run()) == [(["default/a"], []), (["default/b"], [])]
    assert run.script.asked[2:] == [("list", "", ""), ("watch", "20", 300)]
    assert run.waits[1] == 0
    assert run.said() == []


def test_gone_again_and_again_is_not_a_busy_loop():
    run = ReflectorRun(
        *(answer for _ in range(4) for answer in (page(), ScriptedReply({"type": "ERROR", "object": gone()})))
    )
    run.clock.step = 0.1
    run()
    assert run.waits[1::2] == [0, 1, 2, 4]


def test_a_server_that_sends_one_event_and_then_410_is_asked_for_a_handful_of_lists():
    over = {"type": "ERROR", "object": gone()}
    answers = []
    for n in range(1, 9):
        answers += [page(version=f"{n}0"), ScriptedReply(event("ADDED", service(f"s{n}"), f"{n}1"), over)]
    run = ReflectorRun(*answers)
    run.clock.step = 0.01
    run()
    assert run.waits[1::2] == [0, 0.5, 1, 2, 4, 8, 16, 30]


def test_a_watch_that_lasted_makes_the_next_list_come_at_once_again():
    lasting = ScriptedReply(bookmark("11"), {"type": "ERROR", "object": gone()})
    run = ReflectorRun(*(page(), ScriptedReply(gone(), code=410)) * 3, page(), lasting, page())
    lasting.chunks_.insert(0, lambda: setattr(run.clock, "now", run.clock.now + 31))
    run.clock.step = 0.01
    run()
    assert run.waits[-2:] == [0, 0]


def test_one_event_for_each_connection_is_not_a_busy_loop():
    run = ReflectorRun(page(), *(ScriptedReply(event("ADDED", service("a"), str(n))) for n in range(11, 15)))
    run.clock.step = 0.01
    assert len(run()) == 5
    assert run.waits == [0, 0.5, 0.5, 0.5, 0.5]
    assert run.said() == []


def test_a_page_that_is_too_large_is_asked_for_with_fewer_objects(monkeypatch):
    monkeypatch.setattr(reflector, "ANSWER_BYTES", 2000)
    large = [page(*(service(f"s{n}") for n in range(20))) for _ in range(2)]
    run = ReflectorRun(*large, page(service("a"), more="t1"), page(service("b")), ScriptedReply())
    assert brief(run()) == [(["default/a", "default/b"], [])]
    assert run.script.limits == [500, 250, 125, 125]


def test_an_answer_that_is_too_large_for_one_object_is_a_request_error(monkeypatch):
    monkeypatch.setattr(reflector, "ANSWER_BYTES", 100)
    run = ReflectorRun(*(page(service("a")) for _ in range(9)), page(service("a")))
    assert run() == []
    assert run.script.limits[:9] == [500, 250, 125, 62, 31, 15, 7, 3, 1]
    (said,) = [line for line in run.logs if line["log_level"] == "warning"]
    assert said["err"] == "the answer has more than 100 bytes, decompressed"


def test_an_object_that_is_too_large_affects_nothing_else(monkeypatch):
    monkeypatch.setattr(decode, "OBJECT_BYTES", 1000)
    large = service("large", labels={"x": "y" * 1000})
    run = ReflectorRun(
        page(service("a"), large),
        ScriptedReply(event("MODIFIED", large, "11"), event("ADDED", service("b"), "12")),
    )
    assert brief(run()) == [(["default/a"], ["default/large"]), ("default/b", "10.96.0.10")]
    (said,) = [line for line in run.logs if line["log_level"] == "warning"]
    assert (said["object"], said["err"]) == ("default/large", "more than 1000 bytes of JSON")


def test_more_objects_than_there_is_room_for_are_reported_once_and_the_others_live(monkeypatch):
    monkeypatch.setattr(reflector, "ObjectRoom", lambda: ObjectRoom(24))
    tenant = [service(f"s{n}", namespace="greedy") for n in range(5)]
    run = ReflectorRun(
        page(*tenant, service("a")),
        ScriptedReply(
            event("ADDED", service("s9", namespace="greedy"), "11"), event("MODIFIED", service("a"), "12")
        ),
        ScriptedReply(event("DELETED", tenant[0], "13"), event("ADDED", service("s9", namespace="greedy"), "14")),
    )
    events = run()
    assert sorted(events[0].objects) == ["default/a", "greedy/s0", "greedy/s1"]
    assert sorted(events[0].kept) == ["greedy/s2", "greedy/s3", "greedy/s4"]
    assert [item.key for item in events[1:]] == ["default/a", "greedy/s0", "greedy/s9"]
    (said,) = [line for line in run.logs if line["log_level"] == "error"]
    assert said["object"] == "greedy/s2"
    assert said["err"] == "the objects of this kind in namespace greedy are larger than 12 units in all"


def test_a_list_that_never_ends_is_given_up():
    endless = (page(service(f"s{n}"), more=f"t{n}") for n in range(400))
    run = ReflectorRun(*endless, page(service("a")))
    run.clock.step = 100.0
    run.reflector.step()
    assert len(run.script.asked) == 7
    assert run.events() == []


def test_a_cut_connection_resumes_where_it_was():
    run = ReflectorRun(
        page(),
        ScriptedReply(
            event("ADDED", service("a"), "11"), b'{"type": "ADDED", "obj', RequestFailed("connection broken")
        ),
        ScriptedReply(event("ADDED", service("b"), "12")),
    )
    assert brief(run()) == [([], []), ("default/a", "10.96.0.10"), ("default/b", "10.96.0.10")]
    assert run.script.asked[2] == ("watch", "11", 300)
    assert run.waits[1] == 0.5


def test_an_unfinished_last_line_is_dropped():
    run = ReflectorRun(
        page(),
        ScriptedReply(event("ADDED", service("a"), "11"), json.dumps(event("ADDED", service("b"), "12")).encode()),
    )
    assert brief(run())[1:] == [("default/a", "10.96.0.10")]
    assert run.reflector._version == "11"


NONSENSE = [
    b"nonsense\n",
    b'{"type": "ADDED"}\n',
    b'{"type": "ADDED", "object": 5}\n',
    b'{"type": "ADDED", "object": {"metadata": {}}}\n',
    b'{"type": "WHATEVER", "object": {"metadata": {"name": "a"}}}\n',
    b'{"type": "ERROR", "object": 5}\n',
    b'{"type": "ERROR", "object": {"code": 500, "message": "etcd is unwell"}}\n',
    b"\xff\n",
    b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"\n",
]


@pytest.mark.parametrize("line", NONSENSE)
def test_nonsense_in_a_watch_resumes_then_lists_again(line):
    run = ReflectorRun(page(), ScriptedReply(line), ScriptedReply(line), ScriptedReply(line), page(service("a")))
    run.clock.step = 0.1
    assert brief(run()) == [([], []), (["default/a"], [])]
    assert run.waits == [0, 0.5, 1, 2, 0]
    assert [asked[0] for asked in run.script.asked] == ["list", "watch", "watch", "watch", "list"]


def test_events_before_nonsense_count():
    run = ReflectorRun(
        page(),
        ScriptedReply(event("ADDED", service("a"), "11"), b"x\n"),
        ScriptedReply(event("ADDED", service("b"), "12")),
    )
    assert [key for key, _ in brief(run())[1:]] == ["default/a", "default/b"]
    assert run.script.asked[2][1] == "11"


def test_a_server_that_is_away_is_waited_for():
    run = ReflectorRun(
        page(service("a")),
        *[RequestFailed("connection refused")] * 9,
        ScriptedReply(event("ADDED", service("b"), "11")),
    )
    assert len(brief(run())) == 2
    assert run.waits == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0]
    assert {asked[:2] for asked in run.script.asked[1:]} == {("watch", "10")}
    assert run.said() == [messages.WATCH_FAILED]
    assert run.said("info") == [messages.WATCH_BACK]
    assert run.said("debug").count(messages.RETRYING) == 9
    (back,) = [entry for entry in run.logs if entry["event"] == messages.WATCH_BACK]
    assert back["seconds"] > 0
    assert back["kind"] == "Service"


def test_waiting_has_jitter():
    waits = []
    run = ReflectorRun(RequestFailed("x"), RequestFailed("x"))
    run.reflector._pace = Pace(clock=run.clock, uniform=lambda low, high: waits.append((low, high)) or low)
    run()
    assert waits == [(0.25, 0.5), (0.5, 1.0)]


def test_waits_start_anew_after_success():
    run = ReflectorRun(
        page(),
        RequestFailed("x"),
        RequestFailed("x"),
        ScriptedReply(bookmark("11"), RequestFailed("x")),
        ScriptedReply(),
    )
    run.clock.step = 0.1
    run()
    assert run.waits[1:4] == [0.5, 1, 0.5]


def test_waits_start_anew_after_a_long_quiet_watch():
    run = ReflectorRun(page(), RequestFailed("x"), RequestFailed("x"), ScriptedReply(RequestFailed("timed out")))
    run.clock.step = 0.1
    run.script.answers[-1].chunks_.insert(0, lambda: setattr(run.clock, "now", run.clock.now + 400))
    run()
    assert run.waits[1:4] == [0.5, 1, 0.5]


def test_a_watch_that_ends_at_once_is_a_request_error():
    run = ReflectorRun(
        page(), ScriptedReply(), ScriptedReply(), ScriptedReply(bookmark("11")), ScriptedReply(b"\n")
    )
    run.clock.step = 0.1
    run()
    assert run.waits == [0, 0.5, 1, 0.5, 0.5]


@pytest.mark.parametrize("code", [429, 503, 500])
@pytest.mark.parametrize(
    ("wish", "wait"), [("7", 7), ("0", 0.5), ("100000", 300), ("Wed, 21 Oct", 0.5), ("-1", 0.5)]
)
def test_retry_after(code, wish, wait):
    run = ReflectorRun(
        ScriptedReply(status(code, "Busy", "later"), code=code, headers={"Retry-After": wish}), page()
    )
    run()
    assert run.waits == [wait, 0]


def test_retry_after_inside_of_the_stream():
    error = status(504, "Timeout", "Too large resource version", retryAfterSeconds=5)
    run = ReflectorRun(page(), ScriptedReply({"type": "ERROR", "object": error}), ScriptedReply())
    run()
    assert run.waits == [0, 5, 0]


def test_a_version_from_the_future_is_given_up():
    late = [ScriptedReply(status(504, "Timeout", "Too large resource version"), code=504) for _ in range(3)]
    run = ReflectorRun(page(version="900"), *late, page(service("a"), version="20"), ScriptedReply())
    run.clock.step = 0.1
    assert brief(run()) == [([], []), (["default/a"], [])]
    assert run.script.asked[-2:] == [("list", "", ""), ("watch", "20", 300)]
    assert messages.VERSION_WENT_BACK in run.said()


def test_refused_credentials_are_fetched_anew_at_once():
    denied = [ScriptedReply(status(401, "Unauthorized", "Unauthorized"), code=401) for _ in range(3)]
    run = ReflectorRun(*denied, page())
    run()
    assert run.script.refreshed == 3
    assert run.waits == [0, 1, 2, 0]


def test_forbidden_is_retried_for_ever_and_reported_once():
    run = ReflectorRun(page(), *[ScriptedReply(status(403, "Forbidden", "no"), code=403) for _ in range(6)])
    run.clock.step = 0.1
    run()
    assert run.script.refreshed == 0
    assert [asked[0] for asked in run.script.asked] == ["list"] + ["watch"] * 6
    assert run.said() == [messages.WATCH_FAILED]


@pytest.mark.parametrize(
    ("kind", "right"), [(Kind.POD, "list and watch pods"), (Kind.NAMESPACE, "list and watch namespaces")]
)
def test_a_right_that_tenants_need_is_one_error_that_names_right_and_setting(kind, right):
    refused = [ScriptedReply(status(403, "Forbidden", "no"), code=403) for _ in range(4)]
    run = ReflectorRun(*refused, kind=kind)
    assert run() == [RightRefused(kind)]
    (line,) = [entry for entry in run.logs if entry["log_level"] in ("warning", "error")]
    assert (line["event"], line["log_level"]) == (messages.RIGHT_REFUSED, "error")
    assert (line["right"], line["setting"]) == (right, "tenantLabel (--tenant-label)")


def test_another_failure_of_the_same_watch_is_no_matter_of_rights():
    run = ReflectorRun(
        RequestFailed("refused"), ScriptedReply(status(500, "InternalError", "no"), code=500), kind=Kind.POD
    )
    run()
    assert run.said() == [messages.WATCH_FAILED] * 2


def test_another_kind_of_request_error_is_reported_too():
    run = ReflectorRun(
        RequestFailed("refused"),
        RequestFailed("refused"),
        ScriptedReply(b"", code=403),
        RequestFailed("refused"),
        page(),
    )
    run()
    assert len(run.said()) == 3


def test_a_crash_is_logged_and_survived():
    run = ReflectorRun(page(), ZeroDivisionError("bug"), page(service("a")), ScriptedReply())
    assert brief(run()) == [([], []), (["default/a"], [])]
    assert run.said("error") == [messages.WATCH_CRASHED]
    assert run.waits[1] == 0.5


def test_reasons_are_not_endless():
    assert len(RequestFailed("x" * 10_000).reason) == api.MAX_REASON


def test_stopping_ends_the_thread():
    run = ReflectorRun(ScriptedReply(RequestFailed("down")))
    run.reflector.start()
    run.reflector.stop()
    assert not run.reflector._thread.is_alive()


# Lines


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], []),
        ([b"a\nb\nc\n"], [b"a", b"b", b"c"]),
        ([b"a", b"b", b"\nc", b"\n"], [b"ab", b"c"]),
        ([b"a\n", b"b"], [b"a"]),
        ([b"\n\n"], [b"", b""]),
        ([b"a\r\n"], [b"a\r"]),
        ([b"", b"a\nb", b"", b"c\nd"], [b"a", b"bc"]),
    ],
)
def test_lines(chunks, expected):
    assert list(lines(chunks)) == expected


def test_a_line_is_there_as_soon_as_it_is_complete():
    taken = []

    def chunks():
        for chunk in (b"a\n", b"b\nc", b"d\n"):
            taken.append(chunk)
            yield chunk

    found = lines(chunks())
    assert (next(found), len(taken)) == (b"a", 1)
    assert (next(found), len(taken)) == (b"b", 2)
    assert (next(found), len(taken)) == (b"cd", 3)


def test_long_lines_in_small_chunks_and_many_lines_in_a_large_one():
    many = b"x\n" * 200_000
    assert sum(1 for _ in lines([many])) == 200_000
    (line,) = lines([*[b"y" * 100] * 50_000, b"\n"])
    assert len(line) == 5_000_000


def test_a_line_without_an_end(monkeypatch):
    monkeypatch.setattr(api, "MAX_LINE", 10)
    with pytest.raises(RequestFailed, match="longer than 10 bytes"):
        list(lines([b"x" * 6, b"x" * 6]))
    assert list(lines([b"12345678\n12345678\n"])) == [b"12345678"] * 2
