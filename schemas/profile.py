"""The profile: what a published folder holds, column by column, as figures that a person or a gate can read."""

from __future__ import annotations

from typing import Any, Literal

from schemas.features import Owner
from schemas.ledger import Ledger
from schemas.manifest import Kind, Parent
from schemas.settings import Strict

PROFILE, PAGE = "profile.json", "profile.html"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

ColumnKind = Literal["number", "category", "identifier", "other"]
SlotKind = Literal["padding", "null", "unseen", "value", "range", "rest"]
Level = Literal["warning", "note"]


class Slot(Strict):
    """One bar of a distribution: a value, a range of numbers (low <= x < high), or what is left."""

    text: str
    kind: SlotKind
    low: float | None = None
    high: float | None = None
    """Of a range of ranks or of numbers; an open end is None."""


class GroupFigures(Strict):
    """One column in one split, or in a table without splits."""

    values: int
    """Values looked at: rows, or elements drawn from lists."""
    nulls: int = 0
    not_finite: int = 0
    distinct_about: int | None = None
    """HyperLogLog++: within about 5 %."""
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    quantiles: dict[str, float] = {}
    """By probability, from a KLL sketch: the rank is right within about half a percent."""
    counts: tuple[int, ...] = ()
    """By slot, in the order of the column's slots: exact."""
    mean_labels: tuple[float | None, ...] = ()
    """By slot; None where no row of it has a label."""
    label_pearson: float | None = None
    label_correlation_ratio: float | None = None
    """Share of the label's variance that the slots explain (eta squared), approximate: slots are coarser than values.

    What as many slots drawn by chance would explain is taken off, as in epsilon squared.
    """

    def share(self, slot: int) -> float:
        return self.counts[slot] / self.values if self.values else 0.0


class Drift(Strict):
    """Population stability index of one split against an earlier one.

    Over ten ranges of equal share for numbers, over the slots for categories; (count + 1/2) / (rows + slots / 2)
    stands for a share, so that an empty slot has a logarithm.
    """

    before: str
    after: str
    psi: float
    by_chance: float
    """What two samples of one distribution show at these sizes: (slots - 1) (1 / rows before + 1 / rows after)."""


class ColumnProfile(Strict):
    name: str
    type: str
    kind: ColumnKind
    meaning: str
    owner: Owner | None = None
    source: str | None = None
    """The contract's column that it comes from."""
    role: str | None = None
    definition: dict[str, Any] = {}
    """The fitted feature, as in the manifest."""
    vocabulary_size: int | None = None
    dropped_values: int = 0
    slots: tuple[Slot, ...] = ()
    groups: dict[str, GroupFigures]
    drift: tuple[Drift, ...] = ()
    is_list: bool = False
    """Then the figures are of up to 8 elements a row, evenly drawn, and `lengths` of the lists without padding."""
    lengths: ColumnProfile | None = None
    padded_length: int | None = None

    def slot_counts(self, group: str, kind: SlotKind) -> int:
        figures = self.groups[group]
        return sum(count for slot, count in zip(self.slots, figures.counts, strict=True) if slot.kind == kind)

    def missing_share(self, group: str) -> float:
        """Nulls, of the log or encoded."""
        figures = self.groups[group]
        return (figures.nulls + self.slot_counts(group, "null")) / figures.values if figures.values else 0.0

    def unseen_share(self, group: str) -> float:
        figures = self.groups[group]
        return self.slot_counts(group, "unseen") / figures.values if figures.values else 0.0


class TimeProfile(Strict):
    """Rows and mean label over time, by group: bins of one width from `start_ms` on, and hours of the day (UTC)."""

    start_ms: int
    bin_ms: int
    counts: dict[str, tuple[int, ...]]
    mean_labels: dict[str, tuple[float | None, ...]]
    hour_counts: tuple[int, ...]
    hour_mean_labels: tuple[float | None, ...]


class TableProfile(Strict):
    """A table and its columns; `groups` are its splits, or the one group `all`."""

    name: str
    groups: dict[str, int]
    """Rows by group."""
    label: str | None = None
    columns: tuple[ColumnProfile, ...]
    time: TimeProfile | None = None


class QuarantineSample(Strict):
    line: str
    """Shortened; bytes that are no UTF-8 and control characters written as escapes."""
    reason: str


class QuarantineRule(Strict):
    table: str
    rule: str
    rows: int
    samples: tuple[QuarantineSample, ...]


class PartFiles(Strict):
    part: str
    files: int
    rows: int
    row_groups: int
    bytes: int
    median_row_group_rows: int


class Finding(Strict):
    """Something that a reader should know before training, in words."""

    level: Level
    text: str
    table: str | None = None
    column: str | None = None


class Profile(Strict):
    """Of one published folder, named by its manifest's digest."""

    format: Literal[1] = 1
    created_at: str
    code_version: str
    url: str
    id: str
    kind: Kind
    digest: str
    """Of the manifest that was profiled."""
    published_at: str
    published_by: str
    """The code version that wrote the folder."""
    contract: str
    contract_meaning: str
    config: dict[str, Any]
    parents: tuple[Parent, ...]
    ledger: Ledger
    statistics: dict[str, dict[str, float]] = {}
    parts: tuple[PartFiles, ...]
    tables: tuple[TableProfile, ...]
    quarantine: tuple[QuarantineRule, ...] = ()
    quarantine_remark: str = ""
    """Why there are no samples, where there are none although rows were refused."""
    findings: tuple[Finding, ...] = ()
