"""The models of a release behind BentoML: the same retriever, index and ranker, no log, no chance, no limits.

`Alone`: one worker, its API in the service's thread pool, as its documentation has it for models on a CPU. `Batching`:
requests that come together are scored together by a service of its own, as it has it for models that batches help; the
one in front takes them one by one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import bentoml
import torch
from pydantic import BaseModel

from serving.engine import Asked, load_engine

_TOGETHER = 8  # as Headrace's scorer takes


class Query(BaseModel):
    user_id: str
    k: int
    context: dict[str, Any]


class Models:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.engine = load_engine(Path(os.environ["HEADRACE_RELEASE"]))
        self.candidates = self.engine.release.serving.candidates

    def answers(self, queries: list[Query]) -> list[dict[str, Any]]:
        now_ms = int(time.time() * 1000)
        asked = [Asked(user_id=one.user_id, time_ms=now_ms, context=one.context) for one in queries]
        return [
            {
                "generation": self.engine.release.id,
                "fallback": None,
                "items": [
                    {"item_id": self.engine.items.ids[place], "score": score}
                    for place, score in zip(
                        scored.places[: one.k].tolist(), scored.scores[: one.k].tolist(), strict=True
                    )
                ],
            }
            for one, scored in zip(queries, self.engine.score(asked, self.candidates), strict=True)
        ]


@bentoml.service(workers=1, traffic={"timeout": 10})
class Alone:
    def __init__(self) -> None:
        self.models = Models()

    @bentoml.api(route="/recommend")
    def recommend(self, user_id: str, k: int, context: dict[str, Any]) -> dict[str, Any]:
        return self.models.answers([Query(user_id=user_id, k=k, context=context)])[0]


@bentoml.service(workers=1, traffic={"timeout": 10})
class Scoring:
    def __init__(self) -> None:
        self.models = Models()

    @bentoml.api(batchable=True, max_batch_size=_TOGETHER, max_latency_ms=10_000)
    def score(self, queries: list[Query]) -> list[dict[str, Any]]:
        return self.models.answers(queries)


@bentoml.service(workers=1, traffic={"timeout": 10})
class Batching:
    scoring = bentoml.depends(Scoring)

    @bentoml.api(route="/recommend")
    async def recommend(self, user_id: str, k: int, context: dict[str, Any]) -> dict[str, Any]:
        found = await self.scoring.to_async.score([Query(user_id=user_id, k=k, context=context)])
        return found[0]
