"""Compiles the modules of the edge that have a compiled form (`services.edge.compiled`): `python -m deploy.compile`."""
