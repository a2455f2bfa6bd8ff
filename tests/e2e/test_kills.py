"""Every kind of process is killed with SIGKILL once, three at one instant, under load; afterwards each answer that a client
saw is counted once. `make faults` does much more of this.
"""

from __future__ import annotations

import random

import pytest

from tests.e2e.client import Client
from tests.e2e.load import Load, assert_counted_once
from tests.support.stack import KINDS, Stack

AT_ONCE = 3


@pytest.mark.timeout(600)
def test_each_answer_is_counted_once_whatever_is_killed(stack: Stack, owner: Client, loads: list[Load]) -> None:
    order = random.Random(0).sample(KINDS, len(KINDS))
    for at in range(0, len(order), AT_ONCE):
        killed = {kind: stack.kill(kind) for kind in order[at : at + AT_ONCE]}
        for kind, before in killed.items():
            stack.wait_restarted(kind, before, 90)
    stack.wait_ready(120)
    for load in loads:
        load.end()
    for load in loads:
        assert_counted_once(owner, load)
    assert sum(len(load.seen) for load in loads) > 10 * len(KINDS)
