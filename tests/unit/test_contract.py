"""Contracts: what they refuse, and how they say so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from schemas.arrow_types import arrow_schema
from schemas.contract import CATALOG, Contract, read_contract
from schemas.errors import UserError

RAW: dict[str, Any] = {
    "name": "clicks",
    "meaning": "clicks of a shop",
    "events": {
        "source": {"path": "clicks.csv", "delimiter": ","},
        "key": ["who", "what", "at"],
        "columns": [
            {"name": "who", "type": "string", "role": "user", "meaning": "visitor"},
            {"name": "what", "type": "string", "role": "item", "meaning": "product"},
            {"name": "at", "type": "timestamp_ms", "role": "event_time", "meaning": "when"},
            {"name": "price", "type": "float32", "role": "numeric", "nullable": True, "meaning": "euros"},
        ],
    },
}


def written(folder: Path, change: Any) -> str:
    raw = copy.deepcopy(RAW)
    change(raw)
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(path)


def test_every_contract_of_the_catalogue_is_sound_and_named_as_its_file():
    for file in CATALOG.iterdir():
        name = file.name.removesuffix(".yaml")
        assert read_contract(name).name == name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["events"].update(keys=["who"]), "unknown key 'events.keys'; did you mean 'key'?"),
        (lambda c: c["events"]["columns"][0].update(nulable=True), "did you mean 'nullable'?"),
        (lambda c: c["events"]["source"].update(delimeter=";"), "did you mean 'delimiter'?"),
        (lambda c: c["events"].update(key=["whom"]), "key column 'whom' is not among the columns; did you mean 'who'?"),
        (
            lambda c: c["events"]["columns"][1].update(role="user"),
            "one column at most may have the role 'user', 2 have",
        ),
        (lambda c: c["events"]["columns"][2].update(role="none"), "must have the role 'event_time', 0 have"),
        (lambda c: c["events"]["columns"][2].update(type="string"), "role 'event_time' needs one of the types"),
        (lambda c: c["events"]["columns"][0].update(nullable=True), "role 'user' cannot be nullable"),
        (lambda c: c["events"]["columns"][3].update(name="who"), "column 'who' is there twice"),
        (lambda c: c["events"]["columns"][0].update(range={"min": 1}), "a range needs a number"),
        (lambda c: c["events"]["columns"][0].update(pattern="("), "is no regular expression"),
        (lambda c: c.pop("events"), "events: Field required"),
    ],
)
def test_a_faulty_contract_is_refused_in_one_line_with_the_place_and_the_nearest_word(tmp_path, change, says):
    path = written(tmp_path, change)
    with pytest.raises(UserError) as error:
        read_contract(path)
    assert says in str(error.value)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_a_contract_that_is_not_there_names_the_nearest_built_in_one():
    with pytest.raises(UserError, match="no built-in contract 'ml100k'; did you mean 'ml-100k'"):
        read_contract("ml100k")


def test_a_contract_that_is_no_yaml_says_where(tmp_path):
    (tmp_path / "c.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.yaml is not YAML: .*line 1"):
        read_contract(str(tmp_path / "c.yaml"))


def test_the_digest_holds_for_equal_contracts_and_changes_with_any_rule(tmp_path):
    same, other = Contract.model_validate(RAW), Contract.model_validate(copy.deepcopy(RAW))
    stricter = copy.deepcopy(RAW)
    stricter["events"]["columns"][3]["range"] = {"min": 0}
    assert same.digest() == other.digest() != Contract.model_validate(stricter).digest()


def test_a_contract_becomes_an_arrow_schema_with_its_nulls():
    table = Contract.model_validate(RAW).events
    assert arrow_schema(table) == pa.schema(
        [
            pa.field("who", pa.string(), nullable=False),
            pa.field("what", pa.string(), nullable=False),
            pa.field("at", pa.int64(), nullable=False),
            pa.field("price", pa.float32()),
        ]
    )
