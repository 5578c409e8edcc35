"""The manifest: what a published folder holds, how it came to be, and how to tell that it is whole."""

from __future__ import annotations

from typing import Any, Literal

from schemas.contract import Contract
from schemas.event_store import StoreState
from schemas.features import FeatureTransform
from schemas.feedback_state import FeedbackState
from schemas.images import ImageColumn
from schemas.ledger import Ledger
from schemas.settings import Strict, digest_of

MANIFEST = "manifest.json"
SPLITS = ("train", "valid", "test")

Kind = Literal["events", "snapshot", "served"]
QueryGrain = Literal["event", "user"]


class DataFile(Strict):
    """One Parquet file; `row_groups` holds the rows of each of its row groups, in order."""

    path: str
    """Relative to the published folder."""
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


class Parent(Strict):
    """The published folder that another one was made from."""

    url: str
    id: str
    digest: str


class Manifest(Strict):
    """Written last, in one step: a folder without it does not exist for anyone."""

    format: Literal[1] = 1
    kind: Kind
    id: str
    created_at: str
    code_version: str
    contract: Contract
    config: dict[str, Any]
    """The resolved settings of the job that wrote the folder."""
    config_digest: str
    """Names the work: equal for equal settings, contract and input, so that what is done is not done twice."""
    parents: tuple[Parent, ...] = ()
    ledger: Ledger
    parts: dict[str, tuple[DataFile, ...]]
    """Files by part: train, valid, test, items, users, quarantine, vocab/<name> ..."""
    transform: FeatureTransform | None = None
    query_grain: QueryGrain | None = None
    """What one query of the evaluation is: an event (next item at that moment) or a user (all held-out items)."""
    content_sums: dict[str, int] = {}
    """By split, the sum over its rows of a hash of all columns, modulo ROW_ID_MODULUS: equal for equal rows, whatever
    their order and their files."""
    row_id_sums: dict[str, int] = {}
    """By split, the sum of row ids modulo ROW_ID_MODULUS: the identity of the rows, for the training ledger."""

    statistics: dict[str, dict[str, float]] = {}
    """By split: rows, users and items (about), times, shares of unseen ids, mean history length, mean label."""

    store: StoreState | None = None
    """Of events: the version, the raw files read, what each day holds, and the results of the contract's checks."""

    feedback: FeedbackState | None = None
    """Of events that were served: the landed files read, and what each day of them came to."""

    images: ImageColumn | None = None
    """Of a snapshot of images: how they are stored, their classes, and how training varies them."""

    def digest(self) -> str:
        return digest_of(self.model_dump(mode="json"))

    def rows(self, part: str) -> int:
        return sum(file.rows for file in self.parts.get(part, ()))
