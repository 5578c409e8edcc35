"""The wheels to begin with: sound, found by name, places in them counted from their folder."""

from __future__ import annotations

import pytest

from pipelines.turning.beginnings import begin_wheel, known_wheels
from pipelines.turning.wheel_folder import WheelFolder
from schemas.contract import read_contract
from schemas.errors import UserError
from schemas.feature_set import column_name, read_feature_set
from schemas.wheel import read_wheel


@pytest.mark.parametrize("name", ["ml-100k", "kuairand"])
def test_a_wheel_to_begin_with_is_sound_and_speaks_of_columns_that_its_contract_has(tmp_path, name):
    assert name in known_wheels()
    begin_wheel(tmp_path, name, raw="/somewhere/with space")
    settings = read_wheel(tmp_path)
    assert settings.raw == "/somewhere/with space"
    events = read_contract(settings.contract).events
    labels = {column.name for column in events.columns if column.role == "label"}
    assert labels <= {*settings.feedback.labels} <= {column.name for column in events.columns}
    made = {column_name(feature) for feature in read_feature_set(None, read_contract(settings.contract)).features}
    assert {*settings.gate.slice_by} <= made, "columns of the snapshot, not of the log"
    with pytest.raises(UserError, match="is there already"):
        begin_wheel(tmp_path, name)


def test_a_mistaken_name_of_a_wheel_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'kuairand'"):
        begin_wheel(tmp_path, "kuairnd")


def test_relative_places_in_a_wheel_count_from_its_folder(tmp_path):
    begin_wheel(tmp_path, "ml-100k")
    text = (tmp_path / "wheel.yaml").read_text().replace("recipe: two_tower_new_users", "recipe: mine.yaml")
    (tmp_path / "wheel.yaml").write_text(text.replace("contract: ml-100k", "contract: own/contract.yaml"))
    settings = WheelFolder(tmp_path).settings()
    assert settings.raw == str(tmp_path / "raw")
    assert settings.contract == str(tmp_path / "own/contract.yaml")
    assert settings.retriever.recipe == str(tmp_path / "mine.yaml")
