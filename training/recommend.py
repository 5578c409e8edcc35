"""Recommend items to one user of the snapshot that a run was trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from schemas.errors import UserError
from schemas.features import NUM_RESERVED
from schemas.programs import Parser
from schemas.snapshot import Snapshot, open_snapshot
from schemas.storage import absolute, filesystem, join
from training.batch import Batch, to_columns
from training.bundle import Bundle, load_bundle
from training.evaluation import masked
from training.programs import run

_SHOWN_HISTORY = 5


def recommend(run_path: Path, user_id: str, k: int) -> dict[str, Any]:
    """The user's k best unseen items, and the last items of their history; each with item_id, title and score."""
    bundle = load_bundle(run_path / "bundle")
    snapshot = open_snapshot(bundle.manifest.snapshot.url)
    user = user_batch(snapshot, user_id)
    with torch.no_grad():
        everything = torch.arange(NUM_RESERVED, NUM_RESERVED + bundle.items.num_rows)
        scores_1N = bundle.retriever.users(user) @ bundle.retriever.items(everything).T
        top = masked(scores_1N, user.ragged("seen")).topk(min(k, len(everything)), dim=1)
    history = [idx - NUM_RESERVED for idx in user["history"][0].tolist() if idx >= NUM_RESERVED][-_SHOWN_HISTORY:]
    best = zip(top.indices[0].tolist(), top.values[0].tolist(), strict=True)
    return {
        "user_id": user_id,
        "model": bundle.recipe.model.name,
        "history": [item_at(bundle, place) for place in history],
        "items": [item_at(bundle, place) | {"score": round(score, 4)} for place, score in best if score > -1e30],
    }


def user_batch(snapshot: Snapshot, user_id: str) -> Batch:
    """The user as of the end of the log, as a batch of one row. UserError for a user the log does not know."""
    fs, root = filesystem(snapshot.url)
    paths = [join(root, file.path) for file in snapshot.files("users")]
    table = pq.ParquetDataset(paths, filesystem=fs, filters=[("user_id", "=", user_id)]).read()
    if table.num_rows == 0:
        some = snapshot.read("users", ["user_id"]).column("user_id").slice(0, 5).to_pylist()
        raise UserError(f"the snapshot {snapshot.url} has no user {user_id!r}; it has, for example, {', '.join(some)}.")
    features = table.drop_columns(["user_id"])
    return Batch(
        columns=to_columns(features, snapshot.transform.lengths), positions=torch.arange(1), global_rows=1, step=0
    )


def item_at(bundle: Bundle, place: int) -> dict[str, Any]:
    row = bundle.items.slice(place, 1).to_pylist()[0]
    return {"item_id": row["item_id"], "title": row["title"], "count_in_train": row["count"]}


def show(found: dict[str, Any]) -> None:
    history = "; ".join(item["title"] for item in found["history"])
    table = Table(title=f"For user {found['user_id']}, by {found['model']}", caption=f"lately: {history}")
    for name in ("#", "item", "title", "times in train", "score"):
        table.add_column(name, justify="left" if name in ("item", "title") else "right")
    for place, item in enumerate(found["items"], 1):
        table.add_row(str(place), item["item_id"], item["title"], f"{item['count_in_train']:,}", f"{item['score']:.3f}")
    Console().print(table)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.recommend", description=__doc__)
    command.add_argument("--run", required=True, help="folder of the run")
    command.add_argument("--user", required=True, help="user id, as in the log")
    command.add_argument("-k", type=int, default=10, help="how many items (10)")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = command.parse_args(arguments)

    def work(_: object) -> None:
        found = recommend(Path(absolute(given.run)), given.user, given.k)
        if given.json:
            print(json.dumps(found))
        else:
            show(found)

    return run("recommend", work)


if __name__ == "__main__":
    sys.exit(main())
