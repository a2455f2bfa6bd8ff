"""`python -m services.keys migrate|api|worker`."""

from services.keys.main import main

main()
