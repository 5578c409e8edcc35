"""What a change of contract does to days that stand: nothing, a new reading, or a stop that says what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from schemas.contract import Contract
from schemas.errors import UserError
from schemas.evolution import changes, refuse_incompatible
from schemas.settings import parse_model

BASE: dict[str, Any] = {
    "name": "log",
    "meaning": "x",
    "events": {
        "source": {"path": "x"},
        "key": ["id", "at"],
        "columns": [
            {"name": "id", "type": "int32", "meaning": "x"},
            {"name": "at", "type": "timestamp_ms", "role": "event_time", "meaning": "x"},
            {"name": "price", "type": "float32", "nullable": True, "meaning": "x"},
            {"name": "code", "type": "string", "meaning": "x"},
        ],
    },
}


def found(change: Any) -> list[tuple[str, str]]:
    raw = copy.deepcopy(BASE)
    change(raw["events"])
    was, now = (parse_model(Contract, value, where="test") for value in (BASE, raw))
    return [(each.effect, each.what) for each in changes(was, now)]


def columns(events: dict[str, Any]) -> list[dict[str, Any]]:
    return events["columns"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: None, []),
        (lambda e: e.update(source={"path": "elsewhere"}), []),
        (
            lambda e: columns(e).append({"name": "os", "type": "string", "nullable": True, "meaning": "x"}),
            [("compatible", "column os (string) was added; it is null in rows that stand already")],
        ),
        (lambda e: columns(e).pop(2), [("compatible", "column price (float32) was removed")]),
        (lambda e: columns(e)[0].update(type="int64"), [("compatible", "column id was int32 and is int64")]),
        (lambda e: columns(e)[0].update(type="float64"), [("compatible", "column id was int32 and is float64")]),
        (lambda e: columns(e)[2].update(type="float64"), [("compatible", "column price was float32 and is float64")]),
        (lambda e: columns(e)[2].update(range={"min": 0}), [("rebuild", "column price has another range")]),
        (lambda e: columns(e)[2].update(nullable=False), [("rebuild", "column price has another nullable")]),
        (lambda e: e["source"].update(delimiter=","), [("rebuild", "the source is read otherwise")]),
        (
            lambda e: columns(e).append({"name": "os", "type": "string", "meaning": "x"}),
            [("incompatible", "column os was not there and is string, not nullable")],
        ),
        (
            lambda e: columns(e).pop(3),
            [("incompatible", "column code was string, not nullable, and is not there")],
        ),
        (lambda e: columns(e)[2].update(type="int32"), [("incompatible", "column price was float32 and is int32")]),
        (lambda e: columns(e)[3].update(type="int64"), [("incompatible", "column code was string and is int64")]),
        (lambda e: e.update(key=["id"]), [("incompatible", "the key was id, at and is id")]),
    ],
)
def test_a_change_has_this_effect(change: Any, says: list[tuple[str, str]]) -> None:
    assert found(change) == says


def test_an_incompatible_change_says_which_column_was_what_is_what_and_what_to_do() -> None:
    raw = copy.deepcopy(BASE)
    raw["events"]["columns"][2]["type"] = "string"
    was, now = (parse_model(Contract, value, where="test") for value in (BASE, raw))
    with pytest.raises(UserError) as error:
        refuse_incompatible(changes(was, now), where="/out")
    assert str(error.value) == (
        "events: column price was float32 and is string: rows published in /out cannot follow. To go on, leave it "
        "float32, or add a column with another name; or give --rebuild, which reads every file again, or another --out."
    )
