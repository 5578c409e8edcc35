"""Words on standard output and error that are no reason to end a thread: the disk under them may be full too."""

from __future__ import annotations

import sys
from contextlib import suppress


def tell(text: str) -> None:
    """To whoever runs the server; lost where it cannot be written."""
    with suppress(OSError, ValueError):
        print(text, flush=True)


def complain(text: str) -> None:
    """The same on standard error."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
