"""`python -m services.tickets migrate|api|worker`."""

from services.tickets.main import main

main()
