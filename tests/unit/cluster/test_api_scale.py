"""What many nodes cost an API server: what is made, and how pages are followed."""

from __future__ import annotations

import gzip
import json

from tests.cluster import api_clients, api_scale
from tests.cluster.api_clients import PROTOBUF, Way


def test_each_service_has_a_slice_of_five_endpoints():
    service, slice_ = api_scale.objects(7)
    assert slice_["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"] == "scale-7"
    assert len({endpoint["addresses"][0] for endpoint in slice_["endpoints"]}) == 5


def test_the_next_page_is_found_whether_or_not_the_server_has_compressed_this_one():
    body = json.dumps({"metadata": {"continue": "next"}, "items": []}).encode()
    assert api_clients.continuation(body) == "next"
    assert api_clients.continuation(gzip.compress(body)) == "next"
    assert api_clients.continuation(b'{"metadata": {}}') == ""


def test_a_watch_is_asked_for_in_the_form_that_watches_have_and_never_compressed():
    assert Way(PROTOBUF, gzip=True).headers() == f"Accept: {PROTOBUF}\r\nAccept-Encoding: gzip\r\n"
    assert Way(PROTOBUF, gzip=True).headers(watch=True) == f"Accept: {PROTOBUF};stream=watch\r\n"
