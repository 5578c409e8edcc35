"""The benchmark of levers: propensities estimated by hand, the slices it shows, and differences by seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from rich.console import Console

from benchmarks import levers, levers_data
from schemas.bundle import SliceMetrics
from schemas.contract import Contract
from schemas.settings import parse_model
from training.recipe import read_recipe


def test_propensities_are_the_root_of_the_share_of_the_most_shown_item():
    assert levers_data.estimated(np.array([7, 5, 7, 7, 7])).tolist() == [1.0, 0.5, 1.0, 1.0, 1.0]


def test_the_contract_with_propensities_is_one():
    contract = parse_model(Contract, yaml.safe_load(levers_data._contract()), where="here")
    assert [column.name for column in contract.events.with_role("propensity")] == ["propensity"]


@pytest.mark.parametrize("name", levers.PARTS)
def test_every_lever_is_a_recipe_of_each_model(name):
    part = levers.PARTS[name]
    recipes = [read_recipe(recipe, settings) for recipe in part.recipes for settings in part.levers.values()]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(part.recipes) * len(part.levers)


def test_the_lowest_and_the_highest_slice_are_the_outer_ranges():
    values = ("over 3 to 4", "over 4", "up to 3", "not known")
    slices = [SliceMetrics(column="label", value=value, metrics={}) for value in values]
    low, high = levers.ends([SliceMetrics(column="tab", value="up to 1", metrics={}), *slices], "label")
    assert (low.value, high.value) == ("up to 3", "over 4")
    of_clicks = [SliceMetrics(column="label", value=value, metrics={}) for value in ("up to 0", "over 0 to 1")]
    assert [one.value for one in levers.ends(of_clicks, "label")] == ["up to 0", "over 0 to 1"]


def test_a_lever_stands_beside_the_recipe_on_the_same_seeds():
    def run(lever: str, seed: int, auc: float) -> dict[str, object]:
        return {"recipe": "dlrm", "lever": lever, "seed": seed, "found": {"auc": auc}}

    lever = "propensity, floor 0.1"
    runs = [run(levers.PLAIN, 0, 0.70), run(levers.PLAIN, 1, 0.60), run(lever, 0, 0.72), run(lever, 1, 0.61)]
    console = Console(width=160, record=True)
    found = levers.show("kuairand", levers.PARTS["kuairand"], runs, console)
    assert json.loads(json.dumps(found)) == {"dlrm": {levers.PLAIN: {"auc": 0.65}, lever: {"auc": 0.665}}}
    # Differences of 0.02 and 0.01: a mean of 0.015, and a spread of 0.01 / root 2.
    assert "0.6650 (+0.0150 ± 0.0071)" in console.export_text()
