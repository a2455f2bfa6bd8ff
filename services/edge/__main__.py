"""`python -m services.edge`: the edge's parent; with a role, one of its children."""

from __future__ import annotations

from services.edge.main import main

main()
