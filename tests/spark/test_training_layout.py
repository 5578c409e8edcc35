"""The layout that ranks read: even files, random order, row groups of the size that was asked for."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.training_layout import row_group_rows, training_layout, write_training_layout


@pytest.mark.parametrize(
    ("rows", "ranks", "batch_size", "expected"),
    [
        (1, 1, 0, 1_024),
        (100_000, 1, 0, 2_048),  # 64 x 2,048 is the first power of two that holds them
        (10_000_000, 1, 0, 131_072),
        (10_000_000, 64, 0, 32_768),  # 8 a rank: 512 row groups of 19,531 or more
        (10_000_000, 2, 8_192, 131_072),  # 16 batches
        (1_000_000, 2, 5_000, 15_000),  # 64 row groups of 15,625 rows hold three batches each
        (20_000, 1, 32, 1_024),  # whole batches, but no row group of a few hundred rows
        (1_000, 4, 5_000, 5_000),  # a batch at least
    ],
)
def test_row_groups_fit_rows_ranks_and_batches(rows: int, ranks: int, batch_size: int, expected: int) -> None:
    assert row_group_rows(rows, ranks=ranks, batch_size=batch_size) == expected


def test_files_are_even_random_samples_of_their_split(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.range(60_000).select(
        F.xxhash64("id").alias("row_id"),
        F.when(F.col("id") < 40_000, "train").otherwise("test").alias("split"),
        F.col("id").cast("float").alias("label"),
        (F.col("id") % 7).cast("int").alias("tag"),
    )
    layout = training_layout({"train": 40_000, "test": 20_000}, rows_per_row_group=2_000)
    assert layout.num_files == {"train": 6, "test": 3}  # of four row groups, the last one not full
    write_training_layout(rows, HadoopFiles(spark), str(tmp_path), seed=3, layout=layout, sizes={"tag": 7})
    for split, first, count, num_files in (("train", 0, 40_000, 6), ("test", 40_000, 20_000, 3)):
        files = [pq.ParquetFile(path) for path in sorted((tmp_path / split).glob("*.parquet"))]
        sizes = [file.metadata.num_rows for file in files]
        assert len(files) == num_files
        assert sum(sizes) == count
        assert max(sizes) <= 1.1 * min(sizes)
        for file in files:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            assert groups[:3] == [2_000] * 3
            assert len(groups) == 4
            table = file.read().to_pydict()
            assert [int(label) % 7 for label in table["label"]] == table["tag"]
            # Uniform labels: the mean of a file of n is within five standard errors, and of its first half too.
            for part in (table["label"], table["label"][: len(table["label"]) // 2]):
                error = count / 12**0.5 / len(part) ** 0.5
                assert abs(sum(part) / len(part) - (first + count / 2)) < 5 * error
    assert not (tmp_path / "rows").exists()
