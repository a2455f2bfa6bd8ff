"""What can go wrong in the local stack and is told to its user: one error type, whose text says what is wrong and what to do."""

from __future__ import annotations


class StackError(Exception):
    """The stack can't do what was asked. The text is for the user: what is wrong, and what to do about it."""
