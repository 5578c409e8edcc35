"""Publishing: a folder appears whole or not at all, and one job's at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from schemas.errors import LedgerError, SnapshotExists, UserError
from schemas.snapshot import open_snapshot
from spark_jobs.publication import begin

pytestmark = pytest.mark.slow


def test_the_second_of_two_jobs_takes_the_folder_over_and_the_first_publishes_nothing(
    spark: SparkSession, film_events: Path, tmp_path: Path
) -> None:
    manifest = open_snapshot(str(film_events), kind="events").manifest.model_copy(update={"parts": {}})
    url = str(tmp_path / "out")
    first = begin(spark, url, {"seed": 1})
    second = begin(spark, url, {"seed": 2})
    assert first is not None
    assert second is not None
    with pytest.raises(UserError, match=f"^{url}: another job began to write here meanwhile"):
        first.part("events")
    with pytest.raises(UserError, match=f"^{url}: another job began to write here meanwhile"):
        first.commit(manifest)
    assert not (tmp_path / "out" / "manifest.json").exists()
    second.commit(manifest.model_copy(update={"config": second.config, "config_digest": second.config_digest}))
    assert begin(spark, url, {"seed": 2}) is None
    with pytest.raises(SnapshotExists, match=r"with other settings or input \(seed\)"):
        begin(spark, url, {"seed": 1})


def test_a_ledger_that_does_not_add_up_is_not_published(spark: SparkSession, film_events: Path, tmp_path: Path) -> None:
    manifest = open_snapshot(str(film_events), kind="events").manifest
    tables = manifest.ledger.tables
    lost = tables | {"events": tables["events"].model_copy(update={"accepted": 9})}
    publication = begin(spark, str(tmp_path / "out"), {})
    assert publication is not None
    with pytest.raises(LedgerError, match=r"^events: .* 15 rows read, but 9 accepted \+ 1 duplicates \+ 4 quarantined"):
        publication.commit(manifest.model_copy(update={"ledger": manifest.ledger.model_copy(update={"tables": lost})}))
    assert not (tmp_path / "out" / "manifest.json").exists()
