"""Logs followed while they are written to, sealed, landed and taken away: each record once, whatever happens."""

from __future__ import annotations

import os
import time
from pathlib import Path

from serving.append_log import AppendLog
from serving.log_follow import LogFollower, LogReader
from serving.recovery import seal_living


def read(reader: LogReader) -> list[int]:
    return [record["time_ms"] for record in reader.records()]


def append(log: AppendLog, *times: int) -> None:
    log.append_many([b'{"time_ms":%d}' % time_ms for time_ms in times]).result(timeout=10)


def until(is_so) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_record_is_read_once_also_of_a_segment_that_is_sealed_meanwhile(tmp_path):
    log, reader = AppendLog(tmp_path, writer="w"), LogReader(tmp_path, after_ms=2)
    append(log, 1, 3)
    assert read(reader) == [3]
    append(log, 4)
    log.close()
    assert read(reader) == [4]
    assert read(reader) == []


def test_a_sealed_segment_that_was_read_to_its_end_is_not_opened_again(tmp_path, monkeypatch):
    log, reader = AppendLog(tmp_path, writer="w"), LogReader(tmp_path, after_ms=0)
    append(log, 1)
    seal_living(tmp_path)
    append(log, 2)
    assert read(reader) == [1, 2]
    opened, own = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *how: opened.append(path.suffix) or own(path, *how))
    append(log, 3)
    assert read(reader) == [3]
    assert opened == [".open"]
    log.close()


def test_a_segment_that_is_taken_away_between_look_and_read_is_no_error(tmp_path, monkeypatch):
    for time_ms in (1, 2):
        log = AppendLog(tmp_path, writer="w")
        append(log, time_ms)
        log.close()
    reader = LogReader(tmp_path, after_ms=0)
    records = reader.records()
    assert next(records)["time_ms"] == 1
    for path in tmp_path.glob("*.log"):
        os.unlink(path)
    assert list(records) == []


def test_a_line_that_no_server_writes_is_passed_over_and_named(tmp_path, capsys):
    log = AppendLog(tmp_path, writer="w")
    for line in (b"[1]", b'{"time_ms":"now"}', b"not JSON", b'{"time_ms":5}'):
        log.append(line).result(timeout=10)
    log.close()
    assert read(LogReader(tmp_path, after_ms=0)) == [5]
    assert capsys.readouterr().err.count("is passed over") == 3


def test_a_follower_that_fails_says_so_and_goes_on(tmp_path, capsys):
    log, told = AppendLog(tmp_path, writer="w"), []
    ok = []

    def tell(record: dict[str, int]) -> None:
        if not ok:
            raise RuntimeError("no")
        told.append(record["time_ms"])

    follower = LogFollower({LogReader(tmp_path, after_ms=0): tell}, every_s=0.01)
    follower.start()
    append(log, 1)
    until(lambda: follower.problem)
    assert follower.problem == "the logs cannot be followed: RuntimeError: no"
    ok.append(True)
    append(log, 2)
    until(lambda: told == [2])
    until(lambda: follower.problem is None)
    assert capsys.readouterr().err.count("RuntimeError: no") == 1
    follower.close()
    log.close()
