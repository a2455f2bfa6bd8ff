"""A trouble that lasts is told once and now and then, not at every try; and when it is over."""

from __future__ import annotations

import time

import structlog

_AGAIN_AFTER = 60.0
_log = structlog.get_logger()


class Complaint:
    """One kind of trouble of one part."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._told = ""
        self._due = 0.0

    def tell(self, error: object) -> None:
        """It is so; logged when it is new, is another one than before, or has lasted another minute."""
        if str(error) != self._told or time.monotonic() >= self._due:
            self._told, self._due = str(error), time.monotonic() + _AGAIN_AFTER
            _log.warning(self._what, error=self._told)

    def over(self) -> None:
        """It is so no longer."""
        if self._told:
            self._told = ""
            _log.info(f"no longer: {self._what}")
