"""The same events give the same state and log, whatever order the hash seed gives sets."""

import json
import os
import pickle
import subprocess
import sys

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ipvsproxy.config import VipMode
from tests.support.histories import LIMITS
from tests.support.random_objects import link_addresses, nodes, other_nodes, services, slices
from tests.support.repository import REPO

HISTORIES = 100
objects = st.lists(st.one_of(services(), services(), slices(), nodes, other_nodes), min_size=1, max_size=6)
steps = st.one_of(
    st.tuples(st.just("objects"), objects),
    st.tuples(st.just("addresses"), link_addresses),
    st.tuples(st.just("restart"), st.sampled_from(list(VipMode))),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1, 5, 31])),
    st.tuples(st.just("remove"), st.integers(0, 10)),
)


def histories():
    """Return random histories of one node: its limits, and what happens."""
    found = []

    @seed(16)
    @settings(
        max_examples=HISTORIES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.tuples(LIMITS, st.lists(steps, min_size=8, max_size=20)))
    def draw(history):
        found.append(history)

    draw()
    return found


def play_with(hash_seed, drawn):
    """Return what comes of some histories in a process with a hash seed."""
    command = [sys.executable, "-m", "tests.support.played"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, input=drawn, cwd=REPO, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_state_and_log_do_not_depend_on_the_hash_seed():
    drawn = pickle.dumps(histories())
    first, second = play_with("0", drawn), play_with("1", drawn)
    assert len(first) == HISTORIES
    for one, other in zip(first, second, strict=True):
        assert one == other
