"""Checkpoints: written while training goes on, whole or not at all, kept by policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schemas.errors import CheckpointNotWritten, UserError
from training.checkpoint import Checkpoints, KeptCheckpoints, Progress
from training.embeddings.files import table_file
from training.embeddings.placement import place_tables
from training.embeddings.tables import EmbeddingTables
from training.in_background import Abandoned, InBackground, Signals
from training.ranks import OneRank, RanksChanged


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def epoch(number: int, *, best: int = 0) -> Progress:
    return Progress(epochs_done=number + 1, best_epoch=best, best_value=1.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("in_background", [True, False])
def test_what_was_saved_is_what_stood_there_when_save_was_called(tmp_path, in_background):
    model, optimizer = model_and_optimizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    saved = Checkpoints(tmp_path, KeptCheckpoints(in_background=in_background))
    saved.save(model, optimizer, epoch(0), OneRank())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer.state_dict()["state"][0]["exp_avg"].zero_()
    saved.settle(OneRank())
    other, of_other = model_and_optimizer()
    assert Checkpoints(tmp_path).resume(other, of_other, OneRank()) == epoch(0)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(of_other.state_dict()["state"][0]["exp_avg"], moments)


def test_the_newest_the_best_and_every_third_epoch_stay(tmp_path):
    model, optimizer = model_and_optimizer()
    saved = Checkpoints(tmp_path, KeptCheckpoints(newest=2, every_epochs=3))
    for number in range(8):
        saved.save(model, optimizer, epoch(number, best=min(number, 1)), OneRank())
        within = epoch(number, best=min(number, 1)).within_epoch(10, {"step": 10}, Progress().totals)
        saved.save(model, optimizer, within, OneRank())
    saved.settle(OneRank())
    # After epochs 3 and 6 (numbers 2 and 5) for good; number 1 is the best; the two newest.
    expected = ["epoch-00001", "epoch-00002", "epoch-00005", "epoch-00007", "epoch-00008-step-000000010"]
    assert names(tmp_path) == expected


class RankOfTwo(OneRank):
    """One of two ranks whose exchanges are played by the test."""

    def __init__(self, rank: int) -> None:
        super().__init__(size=2)
        self.rank = rank

    def sum(self, values: Tensor, name: str) -> Tensor:
        return torch.full_like(values, 7) if name == "attempt" else values

    def exchange(self, values: Tensor, rows: Sequence[int], name: str) -> Any:
        raise AssertionError("writing a checkpoint exchanges nothing")


def tables(rank: int) -> EmbeddingTables:
    placement = place_tables({"a": 6}, width=2, ids_per_step={"a": 4}, world_size=2, policy="sharded")
    return EmbeddingTables({"a": "a"}, 2, placement, RankOfTwo(rank), seed=1, device=torch.device("cpu"))


def test_rank_0_gives_the_draft_its_name_when_the_other_rank_has_written_its_tables(tmp_path):
    _, optimizer = model_and_optimizer()
    saved = {rank: Checkpoints(tmp_path) for rank in (0, 1)}
    for rank in (0, 1):
        saved[rank].resume(tables(rank), optimizer, RankOfTwo(rank))
    saved[0].save(tables(0), optimizer, epoch(0), RankOfTwo(0))
    assert [name for name in names(tmp_path) if not name.startswith(".draft")] == []
    saved[1].save(tables(1), optimizer, epoch(0), RankOfTwo(1))
    for rank in (1, 0):
        saved[rank].settle(RankOfTwo(rank))
    assert names(tmp_path) == ["epoch-00000"]
    assert {table_file(RankOfTwo(0)), table_file(RankOfTwo(1))} <= {*names(tmp_path / "epoch-00000")}


def test_a_checkpoint_whose_other_rank_died_is_abandoned_and_its_files_are_never_taken_for_new_ones(tmp_path):
    _, optimizer = model_and_optimizer()
    first = Checkpoints(tmp_path)
    first.resume(tables(0), optimizer, RankOfTwo(0))
    first.save(tables(0), optimizer, epoch(0), RankOfTwo(0))
    first.abandon()
    assert [name for name in names(tmp_path) if not name.startswith(".draft")] == []
    again = Checkpoints(tmp_path)
    assert again.resume(tables(0), optimizer, RankOfTwo(0)) == Progress(), "and the draft is gone"
    assert names(tmp_path) == []


def test_a_share_that_cannot_be_written_is_named_with_its_rank_and_the_rest_of_the_ranks_end_too(tmp_path):
    model, optimizer = model_and_optimizer()
    (tmp_path / "full").write_text("a file where the folder should be")
    saved = Checkpoints(tmp_path / "full")
    saved.save(model, optimizer, epoch(0), OneRank())
    with pytest.raises(CheckpointNotWritten, match=r"rank 0 cannot write the checkpoint .*full/\.draft-epoch-00000"):
        saved.settle(OneRank())

    class OtherFailed(OneRank):
        def sum(self, values: Tensor, name: str) -> Tensor:
            return values + 1 if name == "shares_written" else values

    other = Checkpoints(tmp_path / "other")
    other.save(model, optimizer, epoch(0), OtherFailed())
    with pytest.raises(UserError, match="1 rank\\(s\\) could not write their share"):
        other.settle(OtherFailed())


def test_ranks_meet_before_they_wait_for_each_others_files(tmp_path):
    # Rank 1 has died before it wrote: rank 0's thread waits for its file, and the exchange ends with an error.
    class Died(RankOfTwo):
        def sum(self, values: Tensor, name: str) -> Tensor:
            if name == "shares_written":
                raise RanksChanged("a rank has died")
            return super().sum(values, name)

    _, optimizer = model_and_optimizer()
    saved = Checkpoints(tmp_path)
    saved.resume(tables(0), optimizer, Died(0))
    saved.save(tables(0), optimizer, epoch(0), Died(0))
    with pytest.raises(RanksChanged):
        saved.settle(Died(0))
    saved.abandon()
    assert saved.resume(tables(0), optimizer, Died(0)) == Progress()


def test_a_rank_that_has_nothing_to_write_leaves_no_folder(tmp_path):
    model, optimizer = model_and_optimizer()
    saved = Checkpoints(tmp_path)
    saved.save(model, optimizer, epoch(0), RankOfTwo(1))
    saved.settle(RankOfTwo(1))
    assert names(tmp_path) == []


def test_what_fails_in_the_background_is_raised_where_it_is_waited_for():
    background = InBackground()

    def fail(signals: Signals) -> None:
        raise OSError(28, "No space left on device")

    background.begin(fail)
    assert isinstance(background.wait_for_half(), OSError)
    with pytest.raises(OSError, match="No space left"):
        background.settle()
    background.settle()

    def wait(signals: Signals) -> None:
        signals.half_done.set()
        signals.unwanted.wait(60)
        raise Abandoned

    background.begin(wait)
    assert background.wait_for_half() is None
    assert background.is_begun
    background.abandon()
    assert not background.is_begun
