"""Verification: whatever happens to a published folder is found, and told with the file and the numbers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas.errors import LedgerError, SnapshotDamaged
from schemas.snapshot import open_snapshot

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(film_snapshot_folder: Path, tmp_path: Path) -> Path:
    """A published snapshot to damage: six rows of train, two of valid, two of test."""
    return Path(shutil.copytree(film_snapshot_folder, tmp_path / "snapshot"))


def _file(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.parquet"))


def _change_manifest(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_whole_snapshot_is_verified_file_by_file(folder: Path) -> None:
    seen: list[str] = []
    open_snapshot(str(folder)).verify(progress=seen.append)
    assert sorted(seen) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def test_the_manifest_tells_bytes_checksum_and_row_groups_as_others_compute_them(folder: Path) -> None:
    for files in open_snapshot(str(folder)).manifest.parts.values():
        for file in files:
            content = (folder / file.path).read_bytes()
            footer = pq.read_metadata(folder / file.path)
            assert file.bytes == len(content)
            assert file.sha256 == hashlib.sha256(content).hexdigest()
            assert file.row_groups == tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))


@pytest.mark.parametrize(("part", "rows"), [("train", 6), ("valid", 2), ("items", 3), ("vocab/item", 3)])
def test_a_file_that_is_gone_is_named_with_its_rows(folder: Path, part: str, rows: int) -> None:
    gone = _file(folder, part)
    gone.unlink()
    with pytest.raises(SnapshotDamaged) as error:
        open_snapshot(str(folder)).verify(checksums=False)
    assert str(error.value) == f"{folder}: {part}/{gone.name} is missing; it held {rows} rows."


def test_a_file_that_was_cut_short_is_named_with_both_sizes(folder: Path) -> None:
    cut = _file(folder, "train")
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[: size - 10])
    with pytest.raises(SnapshotDamaged) as error:
        open_snapshot(str(folder)).verify(checksums=False)
    assert str(error.value) == (
        f"{folder}: train/{cut.name} has {size - 10:,} bytes, the manifest says {size:,} (6 rows): "
        "it was cut short or written again."
    )


@pytest.mark.parametrize("place", [4, 40, -1])
def test_one_changed_byte_is_found_though_the_size_is_right(folder: Path, place: int) -> None:
    changed = _file(folder, "test")
    content = bytearray(changed.read_bytes())
    content[place] ^= 1
    changed.write_bytes(content)
    open_snapshot(str(folder)).verify(checksums=False)
    with pytest.raises(SnapshotDamaged, match=rf"test/{re.escape(changed.name)} was changed: .* \(2 rows\)\.$"):
        open_snapshot(str(folder)).verify()


def test_a_manifest_with_another_number_of_rows_names_the_file_and_both_numbers(folder: Path) -> None:
    def claim_more(manifest: Any) -> None:
        manifest["parts"]["train"][0]["row_groups"] = [7]

    _change_manifest(folder, claim_more)
    name = _file(folder, "train").name
    with pytest.raises(SnapshotDamaged) as error:
        open_snapshot(str(folder)).verify()
    assert str(error.value) == (
        f"{folder}: train/{name} has 6 rows in row groups of 6, the manifest says 7 in 7: the manifest was changed."
    )
    with pytest.raises(LedgerError, match=r"train holds 7 rows, the ledger says 6\."):
        open_snapshot(str(folder)).verify(checksums=False)


def test_row_groups_that_only_add_up_are_not_enough(folder: Path) -> None:
    def claim_two_groups(manifest: Any) -> None:
        manifest["parts"]["train"][0]["row_groups"] = [5, 1]

    _change_manifest(folder, claim_two_groups)
    with pytest.raises(SnapshotDamaged, match=r"6 rows in row groups of 6, the manifest says 6 in 5 \+ 1"):
        open_snapshot(str(folder)).verify()


def test_a_manifest_whose_ledger_does_not_add_up_names_the_sums(folder: Path) -> None:
    def lose_a_row(manifest: Any) -> None:
        manifest["ledger"]["splits"]["test"] = 1

    _change_manifest(folder, lose_a_row)
    with pytest.raises(LedgerError, match=r"10 events accepted, but train 6 \+ valid 2 \+ test 1 = 9\."):
        open_snapshot(str(folder)).verify(checksums=False)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x80"])
def test_a_manifest_that_is_no_json_is_damaged(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(SnapshotDamaged, match=r"manifest\.json is not JSON"):
        open_snapshot(str(folder))


def test_a_file_that_the_manifest_does_not_name_is_never_read(folder: Path) -> None:
    shutil.copy(_file(folder, "train"), folder / "train" / "stray.parquet")
    snapshot = open_snapshot(str(folder))
    snapshot.verify()
    assert snapshot.read("train").num_rows == 6
