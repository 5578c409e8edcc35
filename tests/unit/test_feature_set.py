"""Feature sets: names, defaults, and faults told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.contract import Contract, read_contract
from schemas.errors import UserError
from schemas.feature_set import column_name, features_of_roles, owner, read_feature_set


@pytest.fixture(scope="module")
def contract() -> Contract:
    return read_contract("ml-100k")


def _read(folder: Path, contract: Contract, *features: dict[str, Any]) -> Any:
    path = folder / "features.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "meaning": "x", "features": list(features)}))
    return read_feature_set(str(path), contract)


def test_without_a_feature_set_the_roles_decide(contract: Contract) -> None:
    wanted = features_of_roles(contract).features
    assert [(column_name(one), one.kind, owner(one)) for one in wanted] == [
        ("item_release_year_idx", "vocabulary", "items"),
        ("item_genres_idx", "vocabulary", "items"),
        ("user_gender_idx", "vocabulary", "users"),
        ("user_occupation_idx", "vocabulary", "users"),
        ("user_age", "number", "users"),
    ]


def test_a_feature_of_two_tables_or_of_the_past_is_a_column_of_events(tmp_path: Path, contract: Contract) -> None:
    wanted = _read(
        tmp_path,
        contract,
        {"kind": "hash", "sources": ["users.gender", "items.release_year"], "buckets": 100},
        {"kind": "hash", "sources": ["users.gender", "users.occupation"], "buckets": 100},
        {"kind": "rate", "by": ["items.item_id"], "window": "14d", "every": "1d"},
        {"kind": "cyclic", "source": "events.event_time_ms", "period": "week"},
    ).features
    assert [(column_name(one), owner(one)) for one in wanted] == [
        ("user_gender_x_item_release_year_hash", "events"),
        ("user_gender_x_user_occupation_hash", "users"),
        ("rate_by_item_item_id_14d", "events"),
        ("event_event_time_ms_of_week", "events"),
    ]


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        (
            {"kind": "number", "source": "users.agee"},
            "users.agee: the contract 'ml-100k' has no such column; did you mean 'age'",
        ),
        ({"kind": "number", "source": "users.gender"}, "a number is made of boolean, float32"),
        ({"kind": "number", "source": "events.rating"}, "the label cannot be a feature"),
        ({"kind": "number", "source": "users.age", "steps": ["clip"]}, "clip needs low or high"),
        ({"kind": "number", "source": "users.age", "steps": ["standardise", "log1p"]}, "in this order"),
        ({"kind": "bucket", "source": "users.age"}, "either edges, or the number of buckets"),
        ({"kind": "bucket", "source": "users.age", "edges": [2, 1]}, "edges must rise"),
        ({"kind": "count", "by": ["users.gender"], "window": "36h"}, "window 36h is no multiple of every 1d"),
        ({"kind": "rate", "by": ["users.gender"], "window": "7d", "folds": 5}, "leave the window out"),
        ({"kind": "hash", "sources": ["user.gender"], "buckets": 5}, "String should match pattern"),
        ({"kind": "vocab", "source": "users.gender"}, "'vocab'"),
    ],
)
def test_a_faulty_feature_set_is_refused_in_one_line(
    tmp_path: Path, contract: Contract, feature: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError) as error:
        _read(tmp_path, contract, feature)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_two_features_of_one_name_are_refused(tmp_path: Path, contract: Contract) -> None:
    age = {"kind": "number", "source": "users.age"}
    with pytest.raises(UserError, match="two features are named 'user_age'"):
        _read(tmp_path, contract, age, age | {"steps": []})
