"""Logistic regression (scikit-learn) and gradient boosting (LightGBM) on the features of a snapshot.

    python -m benchmarks.training_peers.other_learners --snapshot DIR --model lightgbm --seed 0 --heads label

Logistic regression gets every index one-hot, lists (history, tags) as the share of each value in the list, numbers as
they are; its regularisation is chosen on valid. LightGBM gets numbers as they are and indices as categories, a list as
a category for each place, of the history the newest five; one setting, early stopping on valid. Both know users and
items by their ids, as DLRM does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sparse

SPLITS = ("train", "valid", "test")
LEAVES, ROUNDS, PATIENCE = 63, 2000, 50
REGULARISATION = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
MOST_OF_A_LIST = 5


class Rows:
    """The splits of a snapshot in memory."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        transform = manifest["transform"]
        self.features = [one for one in transform["features"] if one["kind"] != "gaps"]
        self.tables = {
            split: pq.ParquetDataset([str(folder / part["path"]) for part in manifest["parts"][split]]).read()
            for split in SPLITS
        }
        missing = [one["name"] for one in self.features if one["name"] not in self.tables["train"].column_names]
        if missing:
            raise SystemExit(f"{folder}: features of items must stand in the rows; {', '.join(missing)} do not.")

    def label(self, split: str, head: str) -> np.ndarray:
        return self.tables[split][head].to_numpy()

    def columns(self, split: str) -> list[tuple[str, np.ndarray]]:
        """Names and values, (rows,) or (rows, length); int32 are indices, float32 numbers."""
        found = []
        for feature in self.features:
            column = self.tables[split][feature["name"]].combine_chunks()
            is_list = hasattr(column, "flatten") and str(column.type).startswith(("list", "fixed_size_list"))
            values = column.flatten().to_numpy() if is_list else column.to_numpy()
            found.append((feature["name"], values.reshape(len(column), -1) if is_list else values))
        return found


def one_hot(rows: Rows, split: str, sizes: dict[str, int]) -> sparse.csr_matrix:
    parts = []
    for name, values in rows.columns(split):
        if values.dtype == np.float32:
            parts.append(sparse.csr_matrix(values.reshape(-1, 1)))
            continue
        lists = values.reshape(len(values), -1)
        held = lists != 0
        weight = (held / np.maximum(held.sum(1, keepdims=True), 1)).astype(np.float32)
        place = np.repeat(np.arange(len(lists)), lists.shape[1])
        shape = (len(lists), sizes[name])
        parts.append(sparse.csr_matrix((weight.ravel(), (place, lists.ravel())), shape=shape))
    return sparse.hstack(parts, format="csr")


def logistic_regression(rows: Rows, head: str, seed: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    sizes: dict[str, int] = {}
    for split in SPLITS:
        for name, values in rows.columns(split):
            if values.dtype != np.float32:
                sizes[name] = max(sizes.get(name, 0), int(values.max()) + 1)
    matrices = {split: one_hot(rows, split, sizes) for split in SPLITS}
    best: tuple[float, float, Any] = (0.0, 0.0, None)
    for strength in REGULARISATION:
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=500, random_state=seed)
        model.fit(matrices["train"], rows.label("train", head))
        auc = roc_auc_score(rows.label("valid", head), model.predict_proba(matrices["valid"])[:, 1])
        print(f"{head}: C {strength}: valid AUC {auc:.5f} after {int(model.n_iter_[0])} iterations", file=sys.stderr)
        best = max(best, (auc, strength, model), key=lambda one: one[0])
    if best[1] in (REGULARISATION[0], REGULARISATION[-1]):
        print(f"{head}: the best C is an end of those tried, {best[1]}", file=sys.stderr)
    return best[2].predict_proba(matrices["test"])[:, 1]


def lightgbm(rows: Rows, head: str, seed: int) -> np.ndarray:
    import lightgbm as lgb

    def matrix(split: str) -> tuple[np.ndarray, list[int]]:
        columns: list[np.ndarray] = []
        for _, values in rows.columns(split):
            # The history is padded on the left, so its last places are the newest; other lists are short.
            columns += [values] if values.ndim == 1 else list(values.T[-MOST_OF_A_LIST:])
        categories = [place for place, values in enumerate(columns) if values.dtype != np.float32]
        return np.column_stack([values.astype(np.float32) for values in columns]), categories

    (train, categories), (valid, _), (test, _) = (matrix(split) for split in SPLITS)
    of_train = lgb.Dataset(train, rows.label("train", head), categorical_feature=categories, free_raw_data=False)
    settings = {"objective": "binary", "metric": "auc", "num_leaves": LEAVES, "learning_rate": 0.05, "seed": seed}
    settings |= {"feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1, "verbosity": -1}
    model = lgb.train(
        settings,
        of_train,
        ROUNDS,
        valid_sets=[lgb.Dataset(valid, rows.label("valid", head), reference=of_train)],
        callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
    )
    return np.asarray(model.predict(test, num_iteration=model.best_iteration))


LEARNERS = {"logistic_regression": logistic_regression, "lightgbm": lightgbm}


def main(arguments: Sequence[str] | None = None) -> None:
    from sklearn.metrics import roc_auc_score

    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--snapshot", type=Path, required=True)
    command.add_argument("--model", choices=tuple(LEARNERS), required=True)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--heads", nargs="+", default=["label"])
    given = command.parse_args(arguments)
    rows = Rows(given.snapshot)
    auc = {
        head: float(roc_auc_score(rows.label("test", head), LEARNERS[given.model](rows, head, given.seed)))
        for head in given.heads
    }
    print(json.dumps({"model": given.model, "seed": given.seed, "auc": auc}))


if __name__ == "__main__":
    main()
