"""Framing: what was written comes back; what was not is never taken for it."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.open_segment import OpenSegment
from serving.recovery import recover
from serving.segments import PREFIX_BYTES, SegmentFault, blocks, checked, scan

GROUPS = [[b'{"a":1}', b'{"a":2}'], [b'{"a":3}'], [b'{"a":4}', b'{"a":5}']]
IN_A_FOLDER = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def abandoned(folder, groups=GROUPS):
    """The segment of a writer that died after its last acknowledgement."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    segment = OpenSegment(folder, "w")
    for group in groups:
        segment.append(group, sync=True)
    segment.abandon()
    return segment.path


def sealed(folder, groups=GROUPS):
    path = abandoned(folder, groups)
    assert recover(folder) == []
    return path.with_suffix(".log")


def records(path, **sizes):
    seal = checked(path)
    found = [line[PREFIX_BYTES:] for block in blocks(path, seal, **sizes) for line in block.split(b"\n")[:-1]]
    assert len(found) == seal.records
    return found


def test_a_line_is_checksum_mark_and_json_and_the_last_one_is_the_seal(tmp_path):
    lines = sealed(tmp_path / "s", [[b'{"a":1}', b'{"a":2}'], [b'{"a":3}']]).read_bytes().split(b"\n")
    # crc32 of mark and JSON, as gzip has it. The first of each group says that all before it was on the disk.
    assert lines[:3] == [b'0a49d2b8+{"a":1}', b'7c0e9d2d {"a":2}', b'387fb03a+{"a":3}']
    assert lines[3][8:].startswith(b'={"records": 3, "size_bytes": 51, "xxh3_128": "')


LINES = st.lists(st.binary(min_size=1, max_size=50).filter(lambda line: b"\n" not in line), min_size=1, max_size=5)


@IN_A_FOLDER
@given(groups=st.lists(LINES, min_size=1, max_size=5), block_bytes=st.integers(1, 200))
def test_lines_come_back_as_they_were_appended(tmp_path, groups, block_bytes):
    path = sealed(tmp_path / "s", groups)
    assert records(path, block_bytes=block_bytes) == [line for group in groups for line in group]


@IN_A_FOLDER
@given(data=st.data())
def test_a_segment_that_was_cut_anywhere_keeps_every_whole_record_and_no_other(tmp_path, data):
    path = abandoned(tmp_path / "s")
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    kept = content[:cut].count(b"\n")
    assert recover(path.parent) == []
    everything = [line for group in GROUPS for line in group]
    after = path.with_suffix(".log")
    assert (records(after) if after.exists() else []) == everything[:kept]
    torn, rest = path.with_suffix(".torn"), content[content[:cut].rfind(b"\n") + 1 : cut]
    assert (torn.read_bytes() if torn.exists() else b"") == rest
    assert not path.exists()


@IN_A_FOLDER
@given(data=st.data())
def test_a_flipped_bit_of_a_sealed_segment_is_never_read_over(tmp_path, data):
    path = sealed(tmp_path / "s")
    content = bytearray(path.read_bytes())
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(SegmentFault, match=r"w\.log is damaged"):
        checked(path)


@pytest.mark.parametrize("place", [0, 12, 17, 25, 40, 60, 70, 80])
def test_a_line_that_was_changed_is_an_error_that_names_it_also_in_the_last_group(tmp_path, place):
    """No kill leaves a line that has its end and is not whole: it may have been acknowledged."""
    path = abandoned(tmp_path / "s")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    (fault,) = recover(path.parent)
    assert f"w.open is damaged: the line at byte {place // 17 * 17} " in str(fault)
    assert path.read_bytes() == content


def test_pieces_of_a_group_are_an_error_until_somebody_cuts_the_file_where_it_says(tmp_path):
    """Power went before the fsync returned, and the kernel writes pages in any order; or a page went bad since."""
    path = abandoned(tmp_path / "s", [[b'{"a":1}'], [b'{"a":2}', b'{"a":3}', b'{"a":4}']])
    content = bytearray(path.read_bytes())
    content[34:51] = bytes(17)
    path.write_bytes(content)
    (fault,) = recover(path.parent)
    assert "truncate -s 34 FILE" in str(fault)
    assert path.read_bytes() == content
    os.truncate(path, 34)
    assert recover(path.parent) == []
    assert records(path.with_suffix(".log")) == [b'{"a":1}', b'{"a":2}']


def test_a_seal_that_was_torn_is_written_again(tmp_path):
    path = sealed(tmp_path / "s")
    whole, again = path.read_bytes(), path.with_suffix(".open")
    for cut in range(1, 60, 7):
        path.rename(again)
        again.write_bytes(whole[:-cut])
        assert recover(path.parent) == []
        assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["left out", "twice", "exchanged"])
def test_lines_that_are_whole_but_not_those_that_were_written_are_found(tmp_path, change):
    path = sealed(tmp_path / "s")
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    lines = {"left out": [second], "twice": [first, first, second], "exchanged": [second, first]}[change]
    path.write_bytes(b"".join([*lines, *rest]))
    with pytest.raises(SegmentFault, match=r"w\.log is damaged"):
        checked(path)


def test_a_walk_counts_records_before_the_first_fault(tmp_path):
    path = abandoned(tmp_path / "s")
    content = path.read_bytes()
    path.write_bytes(content[:40])
    found = scan(path)
    assert (found.records, found.whole_bytes, found.fault_at, found.lost) == (2, 34, 34, False)
