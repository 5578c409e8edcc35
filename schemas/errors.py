"""The errors a user can meet, so that every program can tell a user's mistake from a defect of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right; the text says what, where and what to do. Programs exit with 2."""


class LedgerError(UserError):
    """Rows went missing or came twice; the text names the place and the numbers."""


class SnapshotExists(UserError):
    """A published folder already holds this name; published folders are immutable."""


class SnapshotDamaged(UserError):
    """A file of a published folder is missing, cut short or changed; the text names it."""


class CheckpointNotWritten(UserError):
    """A rank could not write what it has of a checkpoint."""


class LossNotFinite(UserError):
    """Training met a loss that is no number; the text names the rows and the column, or the weights."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Give `; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
