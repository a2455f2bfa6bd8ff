"""What anybody may ask without a key: the keys that verify identity tokens, the description of the API, and the page that
shows it. Read when a serving process starts, and given from memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from services.edge.http.message import METHODS
from services.edge.serving.answers import Answer, method_not_allowed

JWKS_PATH = "/.well-known/keyledger/jwks.json"
_OPENAPI = Path(__file__).parents[3] / "schemas" / "openapi.json"
_PAGE = Path(__file__).parent / "web" / "docs.html"
_JSON = b"application/json"
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Document:
    """A document, whole and as those are answered who have it (RFC 9110, section 13.1.2)."""

    whole: Answer
    unchanged: Answer
    etag: bytes
    methods: tuple[str, ...] = ("GET", "HEAD")

    def answer(self, method: str, fields: bytes) -> Answer:
        """What a request of `method` with these header lines is answered."""
        if method not in self.methods:
            return method_not_allowed(self.methods)
        held = [
            tag.strip(b" \t").removeprefix(b"W/")
            for name, _, value in (line.partition(b":") for line in fields.split(b"\r\n"))
            if name.lower() == b"if-none-match"
            for tag in value.strip().split(b",")
        ]
        return self.unchanged if self.etag in held or b"*" in held else self.whole


def documents(jwks: bytes) -> Mapping[str, Document]:
    """All of them by path. OSError when a file that belongs to the installation is missing."""
    page = _PAGE.read_bytes()
    shown = _document(page, b"text/html; charset=utf-8", b"Content-Security-Policy: %b\r\n" % _policy(page))
    # Without the line breaks, which are for those who read it in the repository.
    described = json.dumps(json.loads(_OPENAPI.read_bytes()), ensure_ascii=False, separators=(",", ":")).encode()
    return {
        "*": _server(),
        JWKS_PATH: _document(jwks, _JSON),
        "/openapi.json": _document(described, _JSON),
        "/docs": shown,
        "/docs/": shown,
    }


def _server() -> Document:
    """What `OPTIONS *` is answered (RFC 9110, section 9.3.7)."""
    options = Answer(200, "ok", fields=b"Allow: %b\r\n" % ", ".join(sorted(METHODS)).encode(), content=b"")
    return Document(options, options, b"", ("OPTIONS",))


def _document(content: bytes, media_type: bytes, more: bytes = b"") -> Document:
    etag = b'"%b"' % hashlib.sha256(content).hexdigest()[:32].encode()
    fields = b"Content-Type: %b\r\nCache-Control: max-age=300\r\nETag: %b\r\nX-Content-Type-Options: nosniff\r\n" % (
        media_type,
        etag,
    )
    whole = Answer(200, "ok", fields=fields + more, content=content)
    return Document(whole, replace(whole, status=304), etag)


def _policy(page: bytes) -> bytes:
    """Only the page's own script and style, by their hashes, and requests to the edge that it came from."""
    hashes: dict[bytes, bytes] = {}
    for kind, text in _INLINE.findall(page):
        hashes[kind] = b"'sha256-%b'" % base64.b64encode(hashlib.sha256(text).digest())
    return (
        b"default-src 'none'; img-src data:; script-src %b; style-src %b; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        % (hashes[b"script"], hashes[b"style"])
    )
