"""Where a step's time goes: phases add up to the whole, and an exchange counts as one in whatever phase it comes."""

from __future__ import annotations

import json
import time

import pytest
import torch

from tests.snapshots import make_snapshot
from training.ranks import OneRank
from training.step_clock import PHASES, ClockedRanks, PhaseClock
from training.step_profile import main

CPU = torch.device("cpu")


def test_phases_add_up_and_an_exchange_within_one_is_not_counted_twice():
    clock = PhaseClock(CPU)
    began = time.perf_counter()
    clock.turn_to("forward")
    time.sleep(0.03)
    with clock.within("exchange"):
        time.sleep(0.05)
    time.sleep(0.02)
    clock.turn_to("rest")
    whole = time.perf_counter() - began
    assert clock.seconds["exchange"] == pytest.approx(0.05, abs=0.02)
    assert clock.seconds["forward"] == pytest.approx(0.05, abs=0.03)
    assert sum(clock.seconds.values()) == pytest.approx(whole, abs=0.01)


def test_ranks_under_a_clock_do_what_ranks_do():
    clock = PhaseClock(CPU)
    ranks = ClockedRanks(OneRank(), clock)
    assert ranks.sum(torch.tensor([2.0]), "a").tolist() == [2.0]
    values, came = ranks.exchange(torch.arange(3), [3], "b")
    assert (values.tolist(), came) == ([0, 1, 2], [3])
    assert not ranks.hosts_changed()
    assert clock.seconds["exchange"] > 0


def test_step_profile_prints_every_phase(tmp_path, capsys):
    url = make_snapshot(tmp_path / "s", [[600]])
    settings = ["--set", "batch_size_per_rank=16", "--steps", "5"]
    assert main(["--snapshot", url, "--recipe", "dlrm", *settings, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == 1
    assert all(found[f"{phase}_ms"] >= 0 for phase in PHASES)
    assert found["forward_ms"] > 0
    assert found["backward_ms"] > 0
    assert main(["--snapshot", url, "--recipe", "dlrm", *settings]) == 0
    assert "backward" in capsys.readouterr().out
    assert main(["--snapshot", url, "--steps", "0"]) == 2
    assert "--steps takes 1 or more" in capsys.readouterr().err
