"""The first key of a stack in containers: `python -m deploy.containers.first_key FILE URL`.

The file gets KEYLEDGER_URL and KEYLEDGER_API_KEY before anything is created, so no crash can lose the secret, and a
retry makes nothing twice.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from deploy.local import environment
from deploy.local.first_key import VARIABLE, create
from services.keys.settings import Settings
from shared.ids import Secret, new_secret
from shared.settings import load


def main() -> None:
    """Create what is missing."""
    path, url = Path(sys.argv[1]), sys.argv[2]
    settings = load(Settings)
    held = environment.read(path).get(VARIABLE)
    secret = Secret(held) if held else new_secret(settings.environment)
    environment.write(path, {"KEYLEDGER_URL": url, VARIABLE: secret.text})
    asyncio.run(create(settings, secret))


if __name__ == "__main__":
    main()
