"""The ledger says where the sums part, with the numbers."""

from __future__ import annotations

import pytest

from schemas.errors import LedgerError
from schemas.ledger import Ledger, SplitLedger, TableLedger, check_rows_seen


def table(**changes: int) -> TableLedger:
    counts = {"lines": 12, "headers": 1, "blanks": 1, "accepted": 7, "duplicates": 1, "quarantined": 2}
    return TableLedger(**{**counts, **changes}, quarantined_by_rule={"type:rating": 2})


def test_a_ledger_that_adds_up_passes():
    Ledger(tables={"events": table()}, splits=SplitLedger(accepted=7, train=5, valid=1, test=1)).check()
    Ledger(tables={"events": table()}, splits=SplitLedger(accepted=7, past=3, train=2, valid=1, test=1)).check()


@pytest.mark.parametrize(
    ("ledger", "says"),
    [
        (Ledger(tables={"events": table(accepted=6)}), "10 rows read, but 6 accepted"),
        (Ledger(tables={"events": table(quarantined=1, accepted=8)}), "1 rows quarantined, but 2 when counted by rule"),
        (
            Ledger(tables={"events": table()}, splits=SplitLedger(accepted=7, train=5, valid=1, test=0)),
            "7 events accepted, but train 5",
        ),
        (
            Ledger(tables={"events": table()}, splits=SplitLedger(accepted=7, past=4, train=2, valid=1, test=1)),
            "7 events accepted, but past 4 \\+ train 2",
        ),
        (
            Ledger(tables={"events": table()}, splits=SplitLedger(accepted=6, train=4, valid=1, test=1)),
            "ingest accepted 7 events, prepare was given 6",
        ),
    ],
)
def test_a_ledger_that_does_not_add_up_says_which_numbers(ledger, says):
    with pytest.raises(LedgerError, match=says):
        ledger.check()


def test_an_epoch_that_loses_a_row_and_one_that_repeats_another_instead_are_both_found():
    with pytest.raises(LedgerError, match="9 rows came through the feed, the snapshot holds 10"):
        check_rows_seen("train", expected_rows=10, rows=9, expected_id_sum=55, id_sum=55)
    with pytest.raises(LedgerError, match="not each of them once"):
        check_rows_seen("train", expected_rows=10, rows=10, expected_id_sum=55, id_sum=54)
