"""Request targets: split, checked and decoded once. A path that another parser could read as another path is refused
instead of guessed at, so the edge's decision and the upstream's always concern the same resource.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from services.edge.http.message import BadMessage

_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*+)++/?|/")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# Dots, slashes, backslashes and control characters.
_HIDDEN = re.compile(r"%(?:2[EeFf]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])")
# Also those that are dots, or nothing, once a server has cut their `;parameters` off.
_DOT_SEGMENT = re.compile(r"/(?:\.{1,2}(?:[/;]|\Z)|;)")


def split(target: bytes) -> tuple[str, str]:
    """The path as it was sent and as it is meant (decoded) of an origin-form target; raises BadMessage.

    `*`, the server as a whole, is its own path.
    """
    text = target.decode("ascii")
    if "#" in text:
        raise BadMessage("The target has a fragment")
    path, _, _ = text.partition("?")
    if _PLAIN.fullmatch(path):
        return path, path
    if text == "*":
        return text, text
    if not path.startswith("/"):
        raise BadMessage("The target must be an absolute path")
    if "//" in path or "\\" in path:
        raise BadMessage("The path is ambiguous")
    if _BROKEN_ESCAPE.search(path) or _DOT_SEGMENT.search(path):
        raise BadMessage("The path is ambiguous")
    if _HIDDEN.search(path):
        raise BadMessage("The path is ambiguous")
    try:
        meant = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise BadMessage("The path is not UTF-8") from None
    # What is still encoded would be another path to a server that decodes twice; so would `..;x`, hidden until now.
    if _ESCAPE.search(meant) or _DOT_SEGMENT.search(meant):
        raise BadMessage("The path is ambiguous")
    return path, meant


def without_parameters(path: str) -> str:
    """`path` as servers see it that cut `;parameters` off each segment."""
    return re.sub(r";[^/]*", "", path)
