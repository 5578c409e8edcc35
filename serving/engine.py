"""The engine: a release, loaded. It finds candidates among all items, ranks them, and keeps what the models saw.

Legend: B requests, N items, C candidates of all requests together, K found for each, D width.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.release import ITEMS, RANKER, RETRIEVER, USERS, Release, read_release
from schemas.served import Encoded, Scalar
from serving.features import Done, Features
from serving.items import Items, read_items
from serving.release_folder import verify_release
from serving.retrieval import ItemIndex
from serving.users import User, Users
from training.batch import Batch
from training.bundle import load_bundle
from training.models.ranker import Ranker
from training.models.retriever import Retriever

_ITEMS_AT_ONCE = 65_536
_MEASURED_USERS = 200


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, with what is known of it; nothing else decides what the models say."""

    user_id: str
    time_ms: int
    context: Mapping[str, Scalar] = field(default_factory=dict)
    since: Done = ()
    """What the user did after the release's last event, oldest first."""
    blocked: Sequence[str] = ()
    exclude_seen: bool = True
    user: User | None = None
    """Who is asking, where that is not as the release knows the user: a request of before the snapshot's end."""


@dataclass(frozen=True)
class Scored:
    """A request's candidates, best first."""

    places: NDArray[np.int64]
    scores: NDArray[np.float64]
    features: dict[str, Encoded]
    """Of user and request."""
    item_features: dict[str, NDArray[Any]]
    """Of events, where the item has a part in them: a row for each candidate."""


@dataclass(frozen=True)
class _Known:
    """A request before it is scored."""

    features: dict[str, Encoded]
    row: dict[str, Any]
    left_out: NDArray[np.int64]
    """Places."""


class Engine:
    """Safe to call from several threads, though one at a time is fastest; `release.id` is its generation."""

    def __init__(
        self, release: Release, users: Users, items: Items, features: Features, retriever: Retriever,
        ranker: Ranker | None,
    ) -> None:  # fmt: skip
        self.release, self.users, self.items, self.features = release, users, items, features
        self._retriever, self._ranker = retriever, ranker
        self._features_of = {f.name: f for f in release.transform.features}
        items_ND = item_vectors(retriever, len(items))
        self.index = ItemIndex(items_ND, release.serving.index)
        self.index.measure(self._some_users(), items_ND, release.serving.candidates)

    @property
    def has_ranker(self) -> bool:
        return self._ranker is not None

    def score(self, asked: Sequence[Asked], candidates: int | Sequence[int]) -> list[Scored]:
        """The best `candidates` for each request, fewer where fewer are left: the same ones whatever is asked with it.

        One number for all, or each its own.
        """
        counts = [candidates] * len(asked) if isinstance(candidates, int) else candidates
        with torch.inference_mode():
            known = [self._known(one) for one in asked]
            users = {name: self._column([k.features[name] for k in known], name) for name in self._retriever.columns}
            users_BD = self._retriever.users(_batch(users, len(known))).float().numpy()
            found = self._retrieved(known, users_BD, counts)
            beside = [
                self.features.of_items(one.row, request.time_ms, places)
                for one, request, (places, _) in zip(known, asked, found, strict=True)
            ]
            if self._ranker is not None:
                found = self._ranked(self._ranker, known, [places for places, _ in found], beside)
        scored = []
        for one, (places, scores), of_items in zip(known, found, beside, strict=True):
            if not np.isfinite(scores).all():
                raise ArithmeticError("a score of the models is no number")
            order = np.argsort(-scores, kind="stable")
            ordered = {name: values[order] for name, values in of_items.items()}
            scored.append(Scored(places[order], scores[order], one.features, ordered))
        return scored

    def popular(self, asked: Asked, k: int) -> NDArray[np.int64]:
        """Places of the k items most often seen in train that are not left out; no model takes part."""
        left_out = self.left_out(asked, self.users.find(asked.user_id))
        first = self.items.by_count[: k + len(left_out)]
        return first[~np.isin(first, left_out)][:k]

    def left_out(self, asked: Asked, user: User | None) -> NDArray[np.int64]:
        """Places of the items that may not be shown: blocked ones, and what the user has seen."""
        places = [place for item_id in asked.blocked if (place := self.items.place_of.get(item_id)) is not None]
        if asked.exclude_seen:
            since = (self.items.place_of.get(item_id) for _, item_id in asked.since)
            places += [place for place in since if place is not None]
            if user is not None:
                seen = user.seen[user.seen >= NUM_RESERVED].astype(np.int64) - NUM_RESERVED
                return np.unique(np.concatenate([seen, np.array(places, dtype=np.int64)]))
        return np.unique(np.array(places, dtype=np.int64))

    def of_item(self, scored: Scored, rank: int) -> dict[str, Encoded]:
        """What the models saw of the candidate at `rank`."""
        place = int(scored.places[rank])
        found: dict[str, Encoded] = {"item_idx": place + NUM_RESERVED}
        found |= {name: values[place].tolist() for name, values in self.items.features.items()}
        return found | {name: values[rank].tolist() for name, values in scored.item_features.items()}

    def _known(self, asked: Asked) -> _Known:
        user = asked.user if asked.user is not None else self.users.find(asked.user_id)
        row: dict[str, Any] = {**asked.context, "user_id": asked.user_id, "event_time_ms": asked.time_ms}
        row |= dict(user.raw) if user is not None else {}
        features = {
            **self.features.user_features(asked.user_id, user),
            **self.features.histories(user, asked.since, asked.time_ms),
            **self.features.of_request(row, asked.time_ms),
        }
        return _Known(features, row, self.left_out(asked, user))

    def _retrieved(
        self, known: list[_Known], users_BD: NDArray[np.float32], counts: Sequence[int]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Places and scores, best first.

        How many are fetched is rounded up to a power of two, and requests of one such number are searched together:
        nobody pays for what another has seen, and an approximate index finds the same as it does for one alone.
        """
        together = defaultdict(list)
        for row, (one, count) in enumerate(zip(known, counts, strict=True)):
            together[1 << (count + len(one.left_out) - 1).bit_length()].append(row)
        found: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for fetched, rows in together.items():
            scores_BK, places_BK = self.index.search(users_BD[rows], fetched)
            for row, scores_K, places_K in zip(rows, scores_BK, places_BK, strict=True):
                kept = np.flatnonzero((places_K >= 0) & ~np.isin(places_K, known[row].left_out))[: counts[row]]
                found[row] = places_K[kept], scores_K[kept].astype(np.float64)
        return [found[row] for row in range(len(known))]

    def _ranked(
        self, ranker: Ranker, known: list[_Known], places: list[NDArray[np.int64]], beside: list[dict[str, Any]]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Each candidate with the probability of the first label."""
        counts = torch.tensor([len(some) for some in places])
        place_C = np.concatenate(places)
        columns: dict[str, torch.Tensor] = {"item_idx": torch.from_numpy(place_C + NUM_RESERVED).int()}
        for name in ranker.columns:
            if name in known[0].features:
                values_B = self._column([one.features[name] for one in known], name)
                columns[name] = values_B.repeat_interleave(counts, dim=0)
            elif name in beside[0]:
                columns[name] = torch.from_numpy(np.concatenate([some[name] for some in beside]))
            elif name in self.items.features and self._features_of[name].owner == "events":
                columns[name] = torch.from_numpy(self.items.features[name][place_C])
        logits_C = ranker(_batch(columns, len(place_C)))[:, 0]
        probability_C = logits_C.double().sigmoid().numpy()
        ends = np.cumsum(counts.numpy())[:-1]
        return list(zip(places, np.split(probability_C, ends), strict=True))

    def _column(self, values: list[Any], name: str) -> torch.Tensor:
        integers = self._features_of[name].dtype == "int32"
        return torch.tensor(values, dtype=torch.int32 if integers else torch.float32)

    def _some_users(self) -> NDArray[np.float32]:
        """Vectors of users of the release, for the measure of an index."""
        asked = [Asked(user_id=u, time_ms=self.release.last_event_time_ms) for u in self.users.some(_MEASURED_USERS)]
        if not asked:
            asked = [Asked(user_id="", time_ms=self.release.last_event_time_ms)]
        with torch.inference_mode():
            known = [self._known(one) for one in asked]
            users = {name: self._column([k.features[name] for k in known], name) for name in self._retriever.columns}
            vectors: NDArray[np.float32] = self._retriever.users(_batch(users, len(known))).float().numpy()
        return vectors


def item_vectors(retriever: Retriever, num_items: int) -> NDArray[np.float32]:
    """Shape (N, D)."""
    every = torch.arange(NUM_RESERVED, NUM_RESERVED + num_items)
    with torch.inference_mode():
        parts = [retriever.items(some).float() for some in every.split(_ITEMS_AT_ONCE)]
    return np.ascontiguousarray(torch.cat(parts).numpy())


def load_engine(folder: Path) -> Engine:
    """Load a release and answer one request with it; UserError for a release that cannot serve."""
    # Of the calling thread, which may be beside one that answers: an index is built with all cores else.
    faiss.omp_set_num_threads(1)
    release = read_release(folder)
    verify_release(folder, release)
    try:
        return _loaded(folder, release)
    except UserError:
        raise
    except Exception as error:  # a file that is whole and yet not what its name says fails in any way
        raise UserError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error


def _loaded(folder: Path, release: Release) -> Engine:
    items = read_items(folder / ITEMS, release.transform.features)
    items.prepare()
    retriever = load_bundle(folder / RETRIEVER)
    ranker = load_bundle(folder / RANKER).model if RANKER in release.bundles else None
    for name, rows in (("items.arrow", len(items)), ("the retriever's items", retriever.items.num_rows)):
        if rows != release.transform.vocabularies["item"].size - NUM_RESERVED:
            raise UserError(f"{folder}: {name}: {rows:,} rows are not one for each item of the vocabulary.")
    if ranker is not None and not isinstance(ranker, Ranker):
        raise UserError(f"{folder}: the ranker's bundle holds no ranker.")
    from_item = release.feedback.from_item if release.feedback is not None else {}
    features = Features(release.transform, from_item, folder, items)
    users = Users(folder / USERS, release.transform.of("users"))
    engine = Engine(release, users, items, features, retriever.retriever, ranker)
    now_ms = time.time_ns() // 1_000_000
    warm = Asked(user_id="", time_ms=now_ms)
    engine.score([warm, warm], release.serving.candidates)
    features.prepare(now_ms)
    return engine


def _batch(columns: Mapping[str, torch.Tensor], rows: int) -> Batch:
    return Batch(columns=columns, positions=torch.arange(rows), global_rows=rows, step=0)
