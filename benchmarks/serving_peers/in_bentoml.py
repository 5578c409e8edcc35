"""The models of a release behind BentoML: the same retriever, index and ranker, no log, no chance, no limits.

One worker, its API in the service's thread pool, as its documentation has it for models on a CPU.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import bentoml
import torch

from serving.engine import Asked, load_engine


@bentoml.service(workers=1, traffic={"timeout": 10})
class Recommender:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.engine = load_engine(Path(os.environ["HEADRACE_RELEASE"]))
        self.candidates = self.engine.release.serving.candidates

    @bentoml.api(route="/recommend")
    def recommend(self, user_id: str, k: int, context: dict[str, Any]) -> dict[str, Any]:
        asked = Asked(user_id=user_id, time_ms=int(time.time() * 1000), context=context)
        scored = self.engine.score([asked], self.candidates)[0]
        items = [
            {"item_id": self.engine.items.ids[place], "score": score}
            for place, score in zip(scored.places[:k].tolist(), scored.scores[:k].tolist(), strict=True)
        ]
        return {"generation": self.engine.release.id, "fallback": None, "items": items}
