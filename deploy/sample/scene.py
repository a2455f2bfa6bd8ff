"""Who calls the sample API, and how: a shop's website and app, its own services, a partner in a hurry, and two that should
have stopped. All in all two to three requests a second."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One kind of call: `weight` beside the client's others, `seconds` typical until the answer, and how often (0 to 1)
    there is no such thing (404) or the API fails (500). `{id}` in the path is a number."""

    method: str
    path: str
    weight: int
    seconds: float
    missing: float = 0.0
    failing: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Requests per sliding window."""

    minute: int
    hour: int
    day: int


ROOMY = Limits(minute=600, hour=20_000, day=400_000)


@dataclass(frozen=True)
class Client:
    """One holder of a key. It makes `burst` calls in a row, so often that they are `per_minute` on average; its key is
    deactivated, or expires, so many seconds after it was made."""

    name: str
    description: str
    per_minute: float
    calls: tuple[Call, ...]
    limits: Limits = ROOMY
    burst: int = 1
    deactivated_after: float | None = None
    expires_after: float | None = None


_READ_ORDER = Call("GET", "/echo/orders/{id}", 30, 0.03, missing=0.05)
_LIST_PRODUCTS = Call("GET", "/echo/products", 25, 0.02)
_READ_PRODUCT = Call("GET", "/echo/products/{id}", 40, 0.015, missing=0.02)
_SEARCH = Call("GET", "/echo/search", 10, 0.2, failing=0.02)
_ORDER = Call("POST", "/echo/orders", 6, 0.12, failing=0.01)
_PAY = Call("POST", "/echo/payments", 5, 0.4, failing=0.04)
_BOARD = Call("GET", "/api/v1/dashboard/stats", 1, 0.0)

CLIENTS = (
    Client("Website", "The shop's own pages", 55, (_LIST_PRODUCTS, _READ_PRODUCT, _SEARCH, _ORDER)),
    Client(
        "Mobile app",
        "iOS and Android, from version 3",
        40,
        (_READ_PRODUCT, _READ_ORDER, _SEARCH, _ORDER, Call("PUT", "/echo/carts/{id}", 15, 0.05)),
    ),
    Client(
        "Billing service", "Charges and refunds", 8, (_PAY, _READ_ORDER, Call("DELETE", "/echo/holds/{id}", 3, 0.06))
    ),
    Client("Reporting", "Hourly figures for finance", 3, (Call("GET", "/echo/reports/daily", 1, 1.2, failing=0.05),)),
    Client("Status board", "The screen in the hallway", 4, (_BOARD,)),
    Client(
        "Northwind (partner)",
        "Fetches its orders in one go",
        20,
        (_READ_ORDER,),
        Limits(minute=30, hour=2000, day=40_000),
        burst=40,
    ),
    Client("Old iOS app", "Version 2: its users were asked to update", 6, (_READ_PRODUCT,), deactivated_after=90),
    Client("Contoso (trial)", "Ends by itself", 6, (_LIST_PRODUCTS, _SEARCH), expires_after=240),
)

DESK = Client("Support desk", "Opens and answers tickets", 1, ())
"""Works on the tickets, with a key of its own."""

SUBJECTS = (
    "Order 1042 shows twice in the list",
    "How do I raise my rate limit?",
    "500 from /payments since this morning",
    "Invoice for March is missing",
    "Webhook for refunds?",
    "Key works in staging but not here",
    "Search is slow on Mondays",
    "Please add a second contact",
)
REPLIES = (
    "Thanks, we are looking into it.",
    "Can you send the X-Request-ID of one such call?",
    "It was a slow query; fixed with today's release.",
    "Here it is: 5f2c... from 09:14.",
    "That helped, thank you.",
)
