"""A wheel's generations: what each turn has done so far, and what came of it, for the page and the dashboard.

generations/0003/turn.json         how far the turn is: `Turn`, written after each step
generations/0003/generation.json   what came of it: `Generation`, which stays when the folder is cleaned
generations.json                   all of them, the oldest first: `Generations`
generations.html                   the same to look at
"""

from __future__ import annotations

from typing import Literal

from schemas.drift import Measure
from schemas.gate import GateVerdict
from schemas.ledger import FeedbackLedger, TableLedger
from schemas.off_policy import OffPolicyReport
from schemas.settings import Strict

FOLDER, TURN, GENERATION = "generations", "turn.json", "generation.json"
GENERATIONS, PAGE = "generations.json", "generations.html"

Outcome = Literal["running", "failed", "refused", "promoted", "abandoned"]


class StepRecord(Strict):
    """One step of a turn, from its start on."""

    name: str
    started_at: str
    seconds: float | None = None
    """None while it runs, and where it was killed."""
    code: int | None = None
    """Exit code; 0 too of a step that there was no need of."""
    skipped: str | None = None
    """Why there was none."""
    inputs: str = ""
    """Digest of its commands and of the small files that they read: a step with others is done again."""


class Turn(Strict):
    """`turn.json`."""

    number: int
    started_at: str
    ended_at: str | None = None
    outcome: Outcome = "running"
    forced: bool = False
    """Begun although nothing was new."""
    champion: str | None = None
    """Id of the release that was in service when it began: what the candidate is held against."""
    events: str | None = None
    """Digest of the event store that it took in: with the same one, and the same settings, there is nothing to do."""
    settings: str = ""
    """Digest of what of wheel.yaml a candidate is made by."""
    steps: tuple[StepRecord, ...] = ()

    @property
    def id(self) -> str:
        return id_of(self.number)

    def step(self, name: str) -> StepRecord | None:
        return next((step for step in self.steps if step.name == name), None)


class MetricChange(Strict):
    """One metric on the held-out split of this generation's snapshot."""

    model: Literal["retriever", "ranker"]
    metric: str
    """`ndcg@10`; of a ranker with its label before it: `is_click auc`."""
    candidate: float
    champion: float | None = None
    """The champion's model on the same rows; None in the first generation."""
    popularity: float | None = None
    interval: tuple[float, float] | None = None
    """Of the candidate, 95 %."""
    higher_is_better: bool = True


class VocabularyGrowth(Strict):
    name: str
    size: int
    before: int | None = None
    """In the champion's snapshot."""


class DriftedColumn(Strict):
    column: str
    measure: Measure | None = None
    """The one that exceeds its threshold the most."""
    num_new: int = 0


class DriftSummary(Strict):
    columns: int
    drifted: tuple[DriftedColumn, ...] = ()


class SkewSummary(Strict):
    requests: int
    features: int
    skewed: tuple[str, ...] = ()


class Popularity(Strict):
    """How what a generation showed is spread over the items, beside the events that it was trained on.

    The popular ones are the tenth of the catalogue with the most events in train.
    """

    items: int
    """Of the catalogue."""
    items_shown: int
    """Different ones."""
    gini_shown: float
    """0: all items as often; 1: one item alone."""
    gini_log: float
    popular_share_shown: float
    popular_share_log: float

    @property
    def amplification(self) -> float:
        """Above 1 popular items are shown more often than people took them."""
        return self.popular_share_shown / self.popular_share_log if self.popular_share_log else 0.0


class ServedSummary(Strict):
    """What a generation answered while it was in service, as far as it has landed."""

    requests: int
    shown: int
    """Items, over all responses."""
    explored: int
    """Of them, those that chance put there."""
    fallbacks: int
    """Requests that the models did not answer."""
    actions: dict[str, int] = {}
    """By kind."""
    popularity: Popularity | None = None

    @property
    def explored_share(self) -> float:
        return self.explored / self.shown if self.shown else 0.0


class Generation(Strict):
    """`generation.json`: one turn of the wheel."""

    turn: Turn
    in_service: bool = False
    events: int | None = None
    """In the event store: of the log that it began with, and of what was served since."""
    new_events: int | None = None
    """More than in the champion's."""
    new_in_train: int | None = None
    """Of these, those in train, where that is the oldest part of the log: of the others nothing is learned yet."""
    served_events: int | None = None
    """Of them, those made of impressions and actions."""
    ledgers: dict[str, TableLedger] = {}
    """Where the rows of the event store's tables went."""
    feedback: FeedbackLedger | None = None
    """What became of all that was shown and done until then."""
    splits: dict[str, int] = {}
    """Rows of the snapshot."""
    vocabularies: tuple[VocabularyGrowth, ...] = ()
    metrics: tuple[MetricChange, ...] = ()
    drift: DriftSummary | None = None
    skew: SkewSummary | None = None
    off_policy: OffPolicyReport | None = None
    verdict: GateVerdict | None = None
    served: ServedSummary | None = None
    cleaned: bool = False
    """Whether its snapshot, runs and release were removed to save room."""


class Generations(Strict):
    """`generations.json`."""

    wheel: str
    """Its name."""
    created_at: str
    champion: str | None
    """Id of the release in service."""
    generations: tuple[Generation, ...]
    """The oldest first."""


def id_of(number: int) -> str:
    """A generation's id, which is its folder's name: `0003`."""
    return f"{number:04d}"
