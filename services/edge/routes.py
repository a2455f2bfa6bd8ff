"""Routes: which upstream answers a path, what permission it takes, and what is refused. The platform's own come first;
the operator's come from a TOML file:

    [routes.reports]                        # the name; identity tokens for it have the audience `route:reports`
    prefix = "/reports"                     # whole segments; the longest prefix wins
    upstream = "http://127.0.0.1:9000"
    permission = "reports:read"             # or by method: { GET = "reports:read", "*" = "reports:write" }
    public = false                          # true: no key, no limit, no metering, no identity
    body_max = 1048576                      # bytes of a request's body
    timeout = 30                            # seconds until the response's head
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from services.edge.http.message import METHODS
from services.edge.http.paths import without_parameters
from shared.events.keys import Permission

BODY_MAX = 1024 * 1024
TIMEOUT_SECONDS = 30.0

PLATFORM_AUDIENCE = "keyledger"
RESERVED = (
    "/api/v1/api-keys",
    "/api/v1/tickets",
    "/api/v1/dashboard",
    "/api/v1/usage",
    "/api/v1/owners",
    "/docs",
    "/openapi.json",
    "/.well-known/keyledger",
    "/dashboard",
)
PLATFORM = {"keys": "/api/v1/api-keys", "tickets": "/api/v1/tickets", "stats": "/api/v1/dashboard"}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_ANY = "*"
# RFC 1123, section 2.1, and the underscores that containers have in their names.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_MAX = 253
_PORT_MAX = 65535


_WANTED = {
    "prefix": 'a path such as "/reports": up to 200 of a-z A-Z 0-9 . _ ~ ! $ & \' ( ) * + , = : @ - and slashes, the first a slash',
    "upstream": 'a scheme, host and port such as "http://127.0.0.1:9000", without a path',
    "permission": 'such as "reports:read", or by method { GET = "reports:read", "*" = "reports:write" },'
    " each up to 64 of a-z 0-9 : . _ -",
    "public": "true or false",
    "body_max": "a number of bytes, 0 or more",
    "timeout": "a number of seconds, more than 0 and at most 3600",
}


class RoutesError(Exception):
    """The routes can't be used; `errors` says why, and so does the text, each in a line of its own."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("".join(f"\n    {error}" for error in errors))
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Route:
    """One prefix and its upstream. `permissions` is by method, `*` the others; None: a valid key is enough."""

    name: str
    prefix: str
    upstream: str
    audience: str
    permissions: dict[str, str] | None = None
    public: bool = False
    body_max: int = BODY_MAX
    timeout: float = TIMEOUT_SECONDS
    platform: bool = field(init=False)
    """Whether the upstream is one of the platform's own services."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "platform", self.audience == PLATFORM_AUDIENCE)

    def allows(self, method: str) -> bool:
        """Whether the route knows `method`: without permissions it knows them all."""
        return self.permissions is None or self._as_listed(method) is not None

    def permission(self, method: str) -> str | None:
        """What permission `method` takes."""
        return None if self.permissions is None else self._as_listed(method)

    def allowed(self) -> list[str]:
        """The methods that the route lists, for Allow."""
        listed = set(self.permissions or ()) - {_ANY}
        return sorted(listed | ({"HEAD"} if "GET" in listed else set()))

    def _as_listed(self, method: str) -> str | None:
        permissions = self.permissions or {}
        names = (method, "GET", _ANY) if method == "HEAD" else (method, _ANY)
        return next((permissions[name] for name in names if name in permissions), None)


class Table:
    """Finds the route of a path: that with the longest prefix of whole segments."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = sorted(routes, key=lambda route: len(route.prefix), reverse=True)
        # What the platform keeps for itself falls to no shorter prefix.
        by_prefix: dict[str, Route | None] = dict.fromkeys(RESERVED)
        by_prefix |= {route.prefix.rstrip("/"): route for route in routes}
        longest = [(f"{prefix}/", by_prefix[prefix]) for prefix in sorted(by_prefix, key=len, reverse=True)]
        # By first segment, the longest first; the prefix `/` comes after all others, whatever the segment.
        self._others = [(prefix, route) for prefix, route in longest if prefix == "/"]
        firsts = {_first(prefix) for prefix, _ in longest}
        self._by_first = {
            first: [(prefix, route) for prefix, route in longest if _first(prefix) == first or prefix == "/"]
            for first in firsts
        }

    def match(self, path: str) -> Route | None:
        """The route of a decoded path; None when none claims it.

        Raises LookupError when servers that cut `;parameters` off would see the path on another route.
        """
        route = self._match(path)
        if ";" in path and self._match(without_parameters(path)) is not route:
            raise LookupError(path)
        return route

    def _match(self, path: str) -> Route | None:
        whole = f"{path}/"
        for prefix, route in self._by_first.get(whole[1 : whole.find("/", 1)], self._others):
            if whole.startswith(prefix):
                return route
        return None


def _first(path: str) -> str:
    return path.split("/", 2)[1]


def _reachable(url: str) -> str:
    """The origin without a slash at its end, when names can be resolved and connected to that look like its host and port."""
    url = url.rstrip("/")
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.netloc.rpartition("]")[2].partition(":")[2]
    if "[" in parts.netloc:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{host} is no IPv6 address") from None
    elif len(host) > _HOST_MAX or not all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")):
        raise ValueError(f"{host} is no host name")
    if port and not 0 < int(port) <= _PORT_MAX:
        raise ValueError(f"{port} is no port")
    return url


Origin = Annotated[
    str,
    Field(pattern=r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-_]+)(:\d{1,5})?/?$"),
    AfterValidator(_reachable),
]


class _Entry(BaseModel):
    """A route as the file has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prefix: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~!$&'()*+,=:@/-]*$", max_length=200)]
    upstream: Origin
    permission: Permission | dict[str, Permission] | None = None
    public: bool = False
    body_max: Annotated[int, Field(ge=0)] | None = None
    timeout: Annotated[float, Field(gt=0, le=3600, strict=False)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> _Entry:
        segments = self.prefix.strip("/").split("/")
        if "." in segments or ".." in segments or (self.prefix != "/" and "" in segments):
            raise ValueError("prefix has an empty or a dot segment")
        if self.public and self.permission is not None:
            raise ValueError("a public route takes no permission")
        if isinstance(self.permission, dict) and (unknown := sorted(set(self.permission) - METHODS - {_ANY})):
            raise ValueError(f"permission names no method: {', '.join(unknown)}")
        return self


def platform(origins: dict[str, str], body_max: int = BODY_MAX, timeout: float = TIMEOUT_SECONDS) -> list[Route]:
    """The routes to the platform's own services, whose origins are given by name."""
    return [
        Route(name, prefix, origins[name], PLATFORM_AUDIENCE, body_max=body_max, timeout=timeout)
        for name, prefix in PLATFORM.items()
    ]


def parse(text: str, body_max: int = BODY_MAX, timeout: float = TIMEOUT_SECONDS) -> list[Route]:
    """The operator's routes from TOML; raises RoutesError with all that is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RoutesError([f"not TOML: {error}"]) from None
    errors = [f"unknown entry {name!r}: routes are tables [routes.<name>]" for name in document if name != "routes"]
    tables = document.get("routes", {})
    if not isinstance(tables, dict):
        raise RoutesError([*errors, "routes must be tables [routes.<name>]"])
    entries = {name: entry for name, table in tables.items() if (entry := _entry(name, table, errors))}
    routes = [_route(name, entry, body_max, timeout) for name, entry in entries.items()]
    errors += _overlaps(routes)
    if errors:
        raise RoutesError(errors)
    return routes


def _entry(name: str, table: Any, errors: list[str]) -> _Entry | None:
    if not _NAME.fullmatch(name) or name in PLATFORM:
        errors.append(f"{name}: a name is up to 63 lower-case letters, digits and hyphens, none of the platform's")
    try:
        return _Entry.model_validate(table)
    except ValidationError as error:
        # A union names each of its members: one line a setting is enough.
        errors += dict.fromkeys(_said(name, table, each) for each in error.errors())
        return None


def _said(name: str, table: Any, error: ErrorDetails) -> str:
    """One error of a route in words: where it is, and what is wanted there."""
    if not error["loc"]:
        return f"{name}: {error['msg'].removeprefix('Value error, ')}"
    setting = str(error["loc"][0])
    match error["type"]:
        case "extra_forbidden":
            return f"{name}: there is no setting {setting!r}; a route has {', '.join(_WANTED)}"
        case "missing":
            return f"{name}: {setting} is missing: {_WANTED[setting]}"
        case "model_type":
            return f"{name}: a route is a table [routes.{name}]"
    return f"{name}: {setting} is {table[setting]!r}, but must be {_WANTED[setting]}"


def _route(name: str, entry: _Entry, body_max: int, timeout: float) -> Route:
    return Route(
        name=name,
        prefix=entry.prefix,
        upstream=entry.upstream,
        audience=f"route:{name}",
        permissions={_ANY: entry.permission} if isinstance(entry.permission, str) else entry.permission,
        public=entry.public,
        body_max=body_max if entry.body_max is None else entry.body_max,
        timeout=timeout if entry.timeout is None else entry.timeout,
    )


def _overlaps(routes: list[Route]) -> list[str]:
    errors = []
    seen: dict[str, str] = {}
    for route in routes:
        bare = route.prefix.rstrip("/")
        if any(bare == reserved or bare.startswith(reserved + "/") for reserved in RESERVED):
            errors.append(f"{route.name}: {route.prefix} belongs to the platform")
        if bare in seen:
            errors.append(f"{route.name}: {route.prefix} is claimed by {seen[bare]} too")
        seen[bare] = route.name
    return errors
