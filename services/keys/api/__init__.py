"""HTTP of the keys service: what it takes and shows (`models`), and how it answers (`routes`)."""

from services.keys.api.routes import Context, router

__all__ = ["Context", "router"]
