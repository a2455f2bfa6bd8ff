"""`python -m services.stats migrate|api|worker`."""

from services.stats.main import main

main()
