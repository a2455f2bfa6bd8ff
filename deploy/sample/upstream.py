"""An upstream behind a route: it answers with what reached it, and with who the edge says is asking.

`python -m deploy.sample.upstream PORT INTERNAL_PORT`, with KEYLEDGER_URL in the environment. `?status=404` (200 to 599) and
`?delay=0.3` (seconds, 5 at most) make it answer so; a POST is answered with 201 otherwise, all else with 200.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.http import http_server
from shared.process import run, until_signalled
from shared.telemetry import configure_logging

AUDIENCE = "route:echo"
"""The route's name says who a token is for: one for another route is refused."""

_ISSUER = "keyledger"
_KEYS = "/.well-known/keyledger/jwks.json"
_IDENTITY = "keyledger-identity"
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_DELAY_MAX = 5.0
_LEEWAY = 30
_BODILESS = frozenset({204, 205, 304})


def create_app(edge: str) -> Starlette:
    """The application. `edge` is the address whose key set signs the identity tokens that it believes."""
    keys = jwt.PyJWKClient(edge + _KEYS)

    async def echo(request: Request) -> Response:
        try:
            status = int(request.query_params.get("status", 201 if request.method == "POST" else 200))
            delay = float(request.query_params.get("delay", 0))
        except ValueError:
            return JSONResponse({"error": "status and delay are numbers"}, 400)
        if not 200 <= status <= 599 or not 0 <= delay <= _DELAY_MAX:
            return JSONResponse({"error": "status lies between 200 and 599, delay between 0 and 5"}, 400)
        try:
            identity = await asyncio.to_thread(_verified, keys, request.headers.get(_IDENTITY, ""))
        except jwt.PyJWTError as error:
            return JSONResponse({"error": f"no valid identity: {error}"}, 401)
        await asyncio.sleep(delay)
        return Response(status_code=status) if status in _BODILESS else JSONResponse(_told(request, identity), status)

    return Starlette(routes=[Route("/{path:path}", echo, methods=_METHODS)])


def _verified(keys: jwt.PyJWKClient, token: str) -> dict[str, Any]:
    """The claims of a token that the edge signed for this route (RFC 7519); fetches its public keys when they are due."""
    key = keys.get_signing_key_from_jwt(token)
    claims: dict[str, Any] = jwt.decode(
        token, key, algorithms=["EdDSA"], audience=AUDIENCE, issuer=_ISSUER, leeway=_LEEWAY
    )
    return claims


def _told(request: Request, identity: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.url.path,
        "query": dict(request.query_params),
        "request_id": request.headers.get("x-request-id"),
        "identity": {name: identity[name] for name in ("owner_id", "key_id", "permissions")},
        # All that came but the token: who has it is, for a minute, whom it names.
        "headers": {name: value for name, value in request.headers.items() if name != _IDENTITY},
    }


async def _serve(port: int, internal: int) -> None:
    app = create_app(os.environ["KEYLEDGER_URL"])
    await until_signalled(("127.0.0.1", internal), {}, http_server(app, "127.0.0.1", port))


def main() -> None:
    """Serves until SIGTERM."""
    configure_logging("info", service="sample", role="upstream")
    run(_serve(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
