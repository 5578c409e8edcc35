"""The replay of the wheel's benchmark: who asks, how they react, and what is measured, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.wheel import ITEMS, SHOWN, Setting, after_first_turn, check_same, show
from benchmarks.wheel_parts.arms import PopularArm
from benchmarks.wheel_parts.people import Ask, Response, ndcg, replay
from benchmarks.wheel_parts.plot import over
from benchmarks.wheel_parts.real_log import read_log
from schemas.errors import UserError
from schemas.served import Shown

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
1\ta\t5\t100
2\tb\t4\t110
2\ta\t3\t120
1\tb\t2\t200
3\tc\t1\t210
1\tc\t4\t220
2\tc\t5\t300
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "ml-100k.inter").write_text(INTER)
    (tmp_path / "ml-100k.item").write_text("item_id:token\n")
    (tmp_path / "ml-100k.user").write_text("user_id:token\n")
    return tmp_path


class Fixed:
    """Shows the same items to everybody, first those that nobody blocked."""

    generation, policy = "0001", "greedy"

    def __init__(self, items: str) -> None:
        self.items = items

    def respond(self, asks, taken, k):
        return [self.answer([item for item in self.items if item not in one.blocked][:k]) for one in asks]

    def answer(self, items):
        shown = (Shown(item_id=i, position=n, score=0.0, propensity=1.0) for n, i in enumerate(items))
        return Response(tuple(shown), items)


def test_the_log_is_cut_into_periods_of_as_many_taken_items(raw):
    log = read_log("ml-100k", raw)
    assert log.time_ms.tolist() == [100_000, 110_000, 120_000, 200_000, 210_000, 220_000, 300_000]
    assert log.cuts(3 / 7, 2) == [200_000, 220_000, 300_001]


def test_the_seed_is_the_raw_log_until_the_first_cut_as_it_was(raw, tmp_path):
    read_log("ml-100k", raw).write_seed(200_000, tmp_path / "seed")
    assert (tmp_path / "seed" / "ml-100k.inter").read_text().splitlines() == INTER.splitlines()[:4]
    assert (tmp_path / "seed" / "ml-100k.item").exists()


def test_users_of_a_period_react_as_they_really_did_in_it(raw):
    log = read_log("ml-100k", raw)
    taken: dict = {}
    done = replay(log, Fixed("cxb"), taken, (200_000, 250_000), {"b"}, name="n", k=2, requests=2)
    # User 1 takes b and c in the period, user 3 takes c; user 2 is not active.
    assert [one.request_id for one in done.impressions] == ["n-1-0", "n-3-0", "n-1-1", "n-3-1"]
    assert [[item.item_id for item in one.items] for one in done.impressions] == [["c", "x"], ["c", "x"], ["b"], ["b"]]
    assert [(one.user_id, one.item_id, one.action, one.value) for one in done.actions] == [
        ("1", "c", "rating", 4.0),
        ("3", "c", "rating", 1.0),
        ("1", "b", "rating", 2.0),
    ]
    # User 3's only event, and after what came of the first answer.
    assert [one.time_ms for one in done.impressions] == [200_000, 210_000, 220_000, 210_002]
    assert taken == {"1": [(200_001, "c"), (220_001, "b")], "3": [(210_001, "c")]}
    assert done.measures["hit_rate"] == 3 / 6
    # Of b and c the first answer has c, the second b, which is all that is left; user 3's has c, which is all.
    assert done.measures["recall@2"] == (1 / 2 + 1 / 1 + 1 / 1) / 3
    assert done.measures["first_recall@2"] == (1 / 2 + 1 / 1) / 2
    assert done.measures["popular_shown"] == 2 / 6  # b
    assert done.measures["popular_taken"] == 1 / 3
    assert done.measures["amplification"] == pytest.approx(1)


def test_what_a_user_takes_in_a_later_period_is_not_taken_in_this_one(raw):
    taken: dict = {}
    done = replay(read_log("ml-100k", raw), Fixed("cb"), taken, (200_000, 215_000), set(), name="n", k=2, requests=1)
    assert [(one.user_id, one.item_id) for one in done.actions] == [("1", "b"), ("3", "c")]
    assert done.measures["recall@2"] == 1.0


def test_of_a_log_that_says_what_was_left_only_what_was_met_goes_into_the_served_log(raw):
    log = replace(read_log("ml-100k", raw), says_what_was_left=True)
    log.acted[3] = False  # user 1 met b and left it alone
    done = replay(log, Fixed("cxb"), {}, (200_000, 250_000), set(), name="n", k=3, requests=1)
    assert [(one.user_id, [item.item_id for item in one.items]) for one in done.impressions] == [
        ("1", ["c", "b"]),
        ("3", ["c"]),
    ]
    assert [item.position for item in done.impressions[0].items] == [0, 2]
    assert [(one.user_id, one.item_id) for one in done.actions] == [("1", "c"), ("3", "c")]
    assert done.measures["hit_rate"] == 2 / 6


def test_ndcg_is_1_where_the_wanted_come_first_and_falls_with_their_place():
    assert ndcg(["a", "b", "x"], {"a", "b"}) == 1
    assert ndcg(["x", "a"], {"a"}) == pytest.approx(1 / np.log2(3))
    assert ndcg(["x", "y"], {"a"}) == 0


def test_popular_items_are_those_of_the_seed_and_of_what_was_taken_since_without_a_users_own(raw):
    log = read_log("ml-100k", raw)
    arm = PopularArm(log, 200_000, {"9": [(1, "c"), (2, "c")], "8": [(1, "c")]})
    both = arm.respond([Ask("4", 0, {}), Ask("1", 0, {})], {}, 3)
    assert [one.best for one in both] == [["c", "a", "b"], ["c", "b"]]
    assert arm.respond([Ask("1", 0, {})], {"1": [(1, "c")]}, 3)[0].best == ["b"]
    assert arm.respond([Ask("4", 0, {}, ("c",))], {}, 1)[0].best == ["a"]


def test_a_mean_is_of_the_periods_after_the_first_turn_and_each_arm_has_a_row_a_measure(capsys):
    assert after_first_turn([{"x": 1.0}, {"x": 2.0}, {"x": 4.0}], "x") == 3.0
    assert after_first_turn([{"x": 1.0}], "x") == 1.0
    setting = Setting(data="ml-100k", generations=2, seed_share=0.5, requests=5, epsilon=0.1, epochs=5)
    rows = {0: [dict.fromkeys(SHOWN, 0.25), dict.fromkeys(SHOWN, 1.25)]}
    rows[1] = [dict.fromkeys(SHOWN, 0.5), dict.fromkeys(SHOWN, 1.5)]
    show({"frozen": rows}, setting)
    cells = next(line for line in capsys.readouterr().out.splitlines() if " recall@20" in line).split("│")
    assert [cell.strip() for cell in cells[1:-1]] == [
        "recall@20", "frozen", "0.375", "1.375", "1.3750", "1.2500 to 1.5000"
    ]  # fmt: skip


def test_an_arm_over_another_is_its_measure_over_that_ones_in_the_same_period_of_the_same_seed():
    results = {"wheel": {0: [{"x": 0.3}, {"x": 0.4}]}, "frozen": {0: [{"x": 0.2}, {"x": 0.4}]}}
    found = over(results, "frozen", "x")["wheel"][0]
    assert [row["x over frozen's"] for row in found] == pytest.approx([1.5, 1.0])


def test_a_folder_of_other_settings_is_refused(tmp_path):
    setting = Setting(data="ml-100k", generations=8, seed_share=0.5, requests=5, epsilon=0.1, epochs=5)
    check_same(tmp_path, setting)
    check_same(tmp_path, setting)
    with pytest.raises(UserError, match="other settings"):
        check_same(tmp_path, Setting(**{**vars(setting), "epochs": 6}))
    assert ITEMS == 20
