"""`python -m services.usage migrate|api|worker`."""

from services.usage.main import main

main()
