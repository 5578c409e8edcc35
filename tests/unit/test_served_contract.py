"""The contract of a log and of what was served since, and the files of rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.launch import ROOT
from schemas.contract import Contract, Range, read_contract
from schemas.errors import UserError
from schemas.feedback import read_rules
from schemas.served_contract import contract_yaml, served_contract

RULES = {"event": "action", "labels": {"rating": {"action": "rate", "take": "value"}}, "window_hours": 2}


def test_seed_and_served_files_are_one_source_and_replace_one_another():
    events = served_contract(read_contract("ml-100k")).events
    assert events.source.path == "{seed,served}/events/day=*/*.parquet"
    assert (events.source.format, events.source.gone) == ("parquet", "drop")
    assert [column.raw_name for column in events.columns] == [
        *("user_id", "item_id", "rating", "event_time_ms"),
        *("propensity", "position", "request_id"),
    ]
    assert events.the("event_time").time_format == "epoch_ms"


def test_the_event_time_joins_the_key_and_loses_the_end_that_a_finished_log_gave_it():
    served = served_contract(read_contract("ml-100k"))
    assert served.events.key == ("user_id", "item_id", "event_time_ms")
    assert served.events.the("event_time").range == Range(min=874684800000)
    assert served_contract(read_contract("kuairand")).events.key == ("user_id", "video_id", "time_ms")


@pytest.mark.parametrize("name", ["ml-100k", "kuairand"])
def test_what_no_response_and_no_action_is_sure_to_give_may_be_null(name: str):
    """Events of a built-in wheel would all go into quarantine for a column that nobody fills."""
    served = served_contract(read_contract(name))
    rules = read_rules(str(ROOT / "schemas" / "wheels" / f"{name}.yaml"))
    must = {column.name for column in served.events.columns if not column.nullable}
    given = {served.events.the(role).name for role in ("user", "item", "event_time")}
    assert must == given | ({*rules.labels} & {column.name for column in served.labels.values()})
    assert all(served.events.column(column).type for column in rules.labels), "each label is a column"


def test_a_column_of_the_key_stays_as_it_is():
    raw = read_contract("kuairand").model_dump(mode="json")
    raw["events"]["key"] = ["user_id", "video_id", "time_ms", "tab"]
    served = served_contract(Contract.model_validate(raw))
    assert (served.events.column("tab").nullable, served.events.column("duration_ms").nullable) == (False, True)


def test_items_and_users_are_read_from_the_seed_as_it_was_published():
    served = served_contract(read_contract("kuairand"))
    assert served.items is not None
    assert served.users is not None
    assert (served.items.source.path, served.users.source.path) == ("seed/items/*.parquet", "seed/users/*.parquet")
    assert served.items.column("uploaded_ms").time_format == "epoch_ms"
    assert served.items.column("tags").raw_name == "tags"


@pytest.mark.parametrize("name", ["ml-100k", "kuairand"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_file_that_is_written_reads_as_the_same_contract(tmp_path: Path, name: str, weighted: bool):
    contract = served_contract(read_contract(name), weighted=weighted)
    (tmp_path / "contract.yaml").write_text(contract_yaml(contract), encoding="utf-8")
    assert read_contract(str(tmp_path / "contract.yaml")) == contract
    assert bool(contract.events.with_role("weight")) == weighted


def test_thresholds_of_rules_that_only_text_can_break_are_left_out():
    raw = read_contract("ml-100k").model_dump(mode="json")
    raw["events"]["thresholds"] = {"width": 0.1, "range:*": 0.2}
    assert served_contract(Contract.model_validate(raw)).events.thresholds == {"range:*": 0.2}


def test_a_column_of_the_base_with_a_name_that_serving_gives_is_refused():
    raw = read_contract("kuairand").model_dump(mode="json")
    raw["events"]["columns"][-1].update(name="position", source="tab")
    with pytest.raises(UserError, match=r"events\.position: .* Name it otherwise, with `source: tab`"):
        served_contract(Contract.model_validate(raw))


def test_rules_are_read_from_a_file_of_their_own_or_from_a_wheel(tmp_path: Path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    (tmp_path / "wheel.yaml").write_text(yaml.safe_dump({"name": "films", "feedback": RULES}))
    rules = read_rules(str(tmp_path / "rules.yaml"))
    assert (rules.event, rules.window_hours, rules.labels["rating"].take) == ("action", 2, "value")
    assert read_rules(str(tmp_path / "wheel.yaml")) == rules
    (tmp_path / "wheel.yaml").write_text(yaml.safe_dump({"feedback": RULES | {"windw_hours": 3}}))
    with pytest.raises(UserError, match="feedback: unknown key 'windw_hours'; did you mean 'window_hours'"):
        read_rules(str(tmp_path / "wheel.yaml"))
