"""An upstream that believes the edge and nobody else: it verifies the identity token of every request.

    EDGE=http://127.0.0.1:8080 ROUTE=reports PORT=9000 python upstream.py

`ROUTE` is the route's name in the edge's `routes.toml`. Needs PyJWT with cryptography (`pip install 'pyjwt[crypto]'`).
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt

ISSUER = "keyledger"
FRESH_SECONDS = 300
# A token may name any key: so often the edge is asked for a key that is not known, however many such tokens come.
ASK_AGAIN_SECONDS = 1
LEEWAY_SECONDS = 30


class Verifier:
    """Verifies tokens for one route with the edge's public keys, which are fetched when needed and kept.

    When the edge signs with another key (rotation), the first token that names it brings it in; a key that the edge no
    longer lists is forgotten within five minutes.
    """

    def __init__(self, edge: str, route: str) -> None:
        self._url = f"{edge}/.well-known/keyledger/jwks.json"
        self._audience = f"route:{route}"
        self._keys: dict[str, Any] = {}
        self._asked = float("-inf")
        self._lock = threading.Lock()

    def verify(self, token: str) -> dict[str, Any]:
        """The token's claims: `owner_id`, `key_id`, `permissions`, ... `jwt.PyJWTError` when it is not good."""
        key = self._key(str(jwt.get_unverified_header(token).get("kid")))
        return jwt.decode(
            token,
            key,
            # Never the algorithm that the token itself names.
            algorithms=["EdDSA"],
            audience=self._audience,
            issuer=ISSUER,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "aud", "iss", "sub"]},
        )

    def _key(self, name: str) -> Any:
        with self._lock:
            age = time.monotonic() - self._asked
            if age > (ASK_AGAIN_SECONDS if name not in self._keys else FRESH_SECONDS):
                self._asked = time.monotonic()
                self._fetch()
            if name not in self._keys:
                raise jwt.InvalidTokenError("no such key")
            return self._keys[name]

    def _fetch(self) -> None:
        try:
            with urllib.request.urlopen(self._url, timeout=3) as answer:  # noqa: S310 - a setting
                found = jwt.PyJWKSet.from_dict(json.load(answer))
        except (OSError, ValueError, jwt.PyJWTError):
            return  # what is known stays good while the edge can't be asked
        self._keys = {key.key_id: key.key for key in found.keys if key.key_id}


class Handler(BaseHTTPRequestHandler):
    """Answers who asked."""

    protocol_version = "HTTP/1.1"
    verifier: Verifier

    def do_GET(self) -> None:
        """Refuses what does not carry exactly one good token."""
        tokens = self.headers.get_all("Keyledger-Identity") or []
        try:
            [token] = tokens
            claims = self.verifier.verify(token)
        except (ValueError, jwt.PyJWTError):
            self._answer(401, {"error": "no good identity"})
        else:
            self._answer(200, {name: claims[name] for name in ("owner_id", "key_id", "permissions")})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    Handler.verifier = Verifier(os.environ["EDGE"], os.environ["ROUTE"])
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
