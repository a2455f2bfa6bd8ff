"""What `keyledger doctor` finds in a running stack, and in one that is being hurt."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from tests.integration.local.test_supervisor import keyledger
from tests.support.eventually import eventually_sync
from tests.support.stack import LocalStack


def findings(stack: LocalStack) -> dict[str, dict[str, Any]]:
    """By check, the worst of each."""
    done = keyledger("doctor", "--json", "--dir", str(stack.directory.root))
    found = json.loads(done.stdout)["stack"]
    assert done.returncode == any(
        each["level"] == "error" for part in json.loads(done.stdout).values() for each in part
    )
    return {
        each["check"]: each for each in sorted(found, key=lambda each: ["ok", "warning", "error"].index(each["level"]))
    }


def levels(stack: LocalStack) -> dict[str, str]:
    return {check: found["level"] for check, found in findings(stack).items()}


def all_well(stack: LocalStack) -> dict[str, dict[str, Any]] | None:
    """The findings, when there is no error among them."""
    found = findings(stack)
    return None if any(each["level"] == "error" for each in found.values()) else found


def test_a_stack_that_is_well(without_containers: LocalStack) -> None:
    found = eventually_sync(lambda: all_well(without_containers), deadline=60)
    assert {"postgres", "kafka", "topics", "database keys", "edge replica", "request log", "first key"} <= found.keys()
    # The routes of these tests name an upstream that nobody listens at.
    assert "nobody (http://127.0.0.1:1)" in found["routes"]["what"]


def test_what_is_wrong_is_found_and_what_to_do_is_said(without_containers: LocalStack) -> None:
    env = without_containers.directory.env
    env.chmod(0o644)
    with psycopg.connect(without_containers.env["KEYLEDGER_KEYS_DATABASE"], autocommit=True) as keys:
        keys.execute("UPDATE log_head SET repair_needed = 'a reason'")
        try:
            found = findings(without_containers)
        finally:
            keys.execute("UPDATE log_head SET repair_needed = NULL")
    assert found["files"]["todo"] == f"chmod go= {env}"
    assert "a reason" in found["database keys"]["what"]
    env.chmod(0o600)
    without_containers.pause("kafka")
    try:
        eventually_sync(lambda: levels(without_containers)["edge replica"] == "error", deadline=60)
        hurt = levels(without_containers)
        assert (hurt["kafka"], hurt["topics"]) == ("error", "error")
    finally:
        without_containers.resume("kafka")
    eventually_sync(lambda: "error" not in levels(without_containers).values(), deadline=60)
