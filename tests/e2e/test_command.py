"""The `keyledger` command on a running stack."""

from __future__ import annotations

import json
import subprocess

from tests.e2e.client import Client, assert_problem
from tests.support.stack import LocalStack, Stack, secret_of


def test_an_owner_and_the_way_back_in_when_its_last_key_is_lost(stack: Stack) -> None:
    shown = stack.cli("owner", "create", "somebody")
    owner_id = shown.split()[shown.split().index("owner") + 1]
    with Client(stack.url, secret_of(shown)) as first:
        [key] = first.get("/api/v1/api-keys").json()["api_keys"]
        assert first.send("DELETE", f"/api/v1/api-keys/{key['id']}").status_code == 200
        assert_problem(first.get("/api/v1/api-keys"), 401, "key_invalid")
    with Client(stack.url, secret_of(stack.cli("key", "create", "--owner", owner_id))) as second:
        answer = second.get("/api/v1/api-keys")
        assert answer.json()["total"] == 1
        assert answer.headers["x-ratelimit-limit"] == "100"


def test_what_up_prints_works_as_pasted(without_containers: LocalStack) -> None:
    env = without_containers.directory.env
    line = f'. {env} && curl -sS -H "X-API-Key: $KEYLEDGER_API_KEY" $KEYLEDGER_URL/api/v1/dashboard/stats'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=30)
    assert '"total_api_calls"' in done.stdout


def test_the_status_names_every_process(without_containers: LocalStack) -> None:
    status = json.loads(without_containers.cli("status", "--json"))
    assert list(status) == ["url", "ready", "processes"]
    assert (status["url"], status["ready"]) == (without_containers.url, True)
    assert all(set(row) == {"name", "role", "pid", "ready", "restarts"} for row in status["processes"])
    assert {row["role"] for row in status["processes"]} == {
        "postgres",
        "kafka",
        "api",
        "worker",
        "edge",
        "serving",
        "agent",
    }
