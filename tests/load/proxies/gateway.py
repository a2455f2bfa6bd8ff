"""What one writes oneself: FastAPI with a check of keys, slowapi with three sliding windows, httpx to the upstream.

One uvicorn process with uvloop and httptools, without access log. Run as
`python -m tests.load.proxies.gateway PORT UPSTREAM_PORT KEY`.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, cast

import httpx
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded

from shared.process import spare_collector

PORT, UPSTREAM_PORT, KEY = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
_LIMITS = "1000000000/minute;1000000000/hour;1000000000/day"
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# RFC 9110, section 7.6.1, and what the server writes itself.
_OWN = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "server", "date"}
)
# The answer's body comes decoded.
_OWN_OF_ANSWERS = _OWN | {"content-encoding", "content-length"}

_keys = {KEY: "bench"}
_upstream = httpx.AsyncClient(
    base_url=f"http://127.0.0.1:{UPSTREAM_PORT}",
    limits=httpx.Limits(max_connections=512, max_keepalive_connections=512),
    timeout=30,
    trust_env=False,
)


def _key(request: Request) -> str:
    return request.headers.get("x-api-key", "")


async def _known(request: Request) -> None:
    if _key(request) not in _keys:
        raise HTTPException(401)


app = FastAPI(openapi_url=None)
app.state.limiter = limiter = Limiter(key_func=_key, strategy="sliding-window-counter")
app.add_exception_handler(RateLimitExceeded, cast("Any", _rate_limit_exceeded_handler))


@app.api_route("/{path:path}", methods=_METHODS)
@limiter.limit(_LIMITS)
async def forward(request: Request, path: str, known: Annotated[None, Depends(_known)]) -> Response:
    """Passes the request on."""
    answer = await _upstream.request(
        request.method,
        request.url.path + ("?" + request.url.query if request.url.query else ""),
        headers=[(name, value) for name, value in request.headers.items() if name not in _OWN],
        content=await request.body(),
    )
    headers = {name: value for name, value in answer.headers.items() if name not in _OWN_OF_ANSWERS}
    return Response(answer.content, answer.status_code, headers)


if __name__ == "__main__":
    spare_collector()
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=PORT,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=60,
    )
