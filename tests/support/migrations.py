"""A database as it was before a migration, to try the migration on."""

from __future__ import annotations

import shutil
from pathlib import Path


def up_to(last: str, directory: Path, tmp_path: Path) -> Path:
    """A copy of a service's migrations up to the number `last`, under the same names."""
    copy = tmp_path / directory.parent.name / directory.name
    copy.mkdir(parents=True)
    for path in sorted(directory.glob("*.sql")):
        if path.name[: len(last)] <= last:
            shutil.copy(path, copy)
    return copy
