"""The S3 server that other tests lean on: it keeps what is put, gives ranges of it, and asks who is there."""

from __future__ import annotations

import os
import subprocess
import sys

import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from tests.object_store import ObjectStore

pytestmark = pytest.mark.slow

DIGITS = b"0123456789"


@pytest.fixture
def bucket(s3_environment: ObjectStore) -> str:
    return s3_environment.make_bucket()


def test_what_is_put_is_listed_and_read(bucket):
    fs = fsspec.filesystem("s3")
    fs.pipe({f"{bucket}/folder/a": DIGITS, f"{bucket}/folder/deep/b": b""})
    assert fs.find(f"{bucket}/folder") == [f"{bucket}/folder/a", f"{bucket}/folder/deep/b"]
    assert fs.ls(f"{bucket}/folder", detail=False) == [f"{bucket}/folder/a", f"{bucket}/folder/deep"]
    assert fs.cat_file(f"{bucket}/folder/a") == DIGITS
    assert fs.info(f"{bucket}/folder/a")["size"] == 10


def test_ranges_are_read(bucket):
    fs = fsspec.filesystem("s3")
    path = f"{bucket}/digits"
    fs.pipe_file(path, DIGITS)
    # By name: s3fs's second argument is version_id.
    assert fs.cat_file(path, start=2, end=5) == b"234"
    assert fs.cat_file(path, start=-3) == b"789"
    assert fs.cat_ranges([path] * 3, [0, 4, -2], [1, 7, None]) == [b"0", b"456", b"89"]


def test_an_object_larger_than_a_part_comes_whole(bucket):
    fs = fsspec.filesystem("s3")
    sent = os.urandom(1 << 20) * 12
    with fs.open(f"{bucket}/large", "wb", block_size=5 << 20) as file:
        file.write(sent)
    assert fs.cat_file(f"{bucket}/large") == sent


def test_parquet_goes_through_fsspec_and_arrow_alike(bucket, s3_environment):
    table = pa.table({"user_idx": pa.array(range(1_000), pa.int32()), "name": [f"user {i}" for i in range(1_000)]})
    path = f"{bucket}/tables/part-0.parquet"
    fs = fsspec.filesystem("s3")
    with fs.open(path, "wb") as file:
        pq.write_table(table, file, row_group_size=300)
    with fs.open(path, "rb", cache_type="none") as file:
        read = pq.ParquetFile(file, pre_buffer=True)
        assert read.num_row_groups == 4
        assert read.read_row_group(1).equals(table.slice(300, 300))
    assert pa.dataset.dataset(f"{bucket}/tables", filesystem=fs).to_table().equals(table)
    assert pq.read_table(f"s3://{path}").equals(table)
    arrow = pyarrow.fs.S3FileSystem(
        access_key=s3_environment.key,
        secret_key=s3_environment.secret,
        endpoint_override=s3_environment.endpoint_url,
    )
    assert pq.read_table(path, filesystem=arrow).equals(table)


def test_a_subprocess_reaches_it_by_the_environment_alone(bucket, object_store):
    fsspec.filesystem("s3").pipe_file(f"{bucket}/digits", DIGITS)
    program = "import fsspec, sys; print(fsspec.open(sys.argv[1]).open().read())"
    shown = subprocess.run(
        [sys.executable, "-c", program, f"s3://{bucket}/digits"],
        env={**os.environ, **object_store.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout.strip() == repr(DIGITS)


@pytest.mark.parametrize("stranger", [{"secret": "wrong"}, {"key": "nobody"}, {"anon": True}])
def test_strangers_are_refused(stranger, bucket, object_store):
    path = f"{bucket}/digits"
    object_store.filesystem().pipe_file(path, DIGITS)
    fs = object_store.filesystem(**stranger)
    with pytest.raises(PermissionError):
        fs.cat_file(path)
    with pytest.raises(PermissionError):
        fs.ls(bucket)
    with pytest.raises(PermissionError):
        fs.pipe_file(f"{bucket}/other", DIGITS)
    assert object_store.filesystem().find(bucket) == [path]


def test_a_bucket_that_nobody_made_is_missing(s3_environment):
    with pytest.raises(FileNotFoundError):
        fsspec.filesystem("s3").pipe_file("nobody-made-this/digits", DIGITS)
