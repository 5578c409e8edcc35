"""Which code wrote a folder: the release, and the commit where the code runs from a checkout."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

VERSION = "0.2.0"


def code_version() -> str:
    """For example `0.2.0+g1a2b3c4`, or `0.2.0` outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return VERSION
    git = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return f"{VERSION}+g{git.stdout.strip()}" if git.returncode == 0 else VERSION


def now_utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
