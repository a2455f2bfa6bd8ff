"""The stack without containers, on real servers."""
