"""The append-only log: what it acknowledges is there, whatever happens to its process and its disk."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.launch import ROOT
from serving.append_log import AppendLog, LogRefused
from serving.open_segment import Uncertain
from serving.recovery import recover, seal_living
from serving.segments import PREFIX_BYTES, blocks, checked


def lines_of(folder):
    found = []
    for path in sorted(folder.glob("*.log")):
        found += [line for block in blocks(path, checked(path)) for line in block.split(b"\n")[:-1]]
    return found


def records_of(folder):
    return [line[PREFIX_BYTES:] for line in lines_of(folder)]


def test_an_acknowledged_line_is_in_the_file_and_close_seals_it(tmp_path):
    log = AppendLog(tmp_path, writer="w")
    log.append(b"{}").result(timeout=10)
    (path,) = tmp_path.glob("*.open")
    assert path.read_bytes()[PREFIX_BYTES:] == b"{}\n"
    log.close()
    assert re.fullmatch(r"w-\d{8}T\d{9}-[0-9a-f]{8}-000001\.log", next(tmp_path.iterdir()).name)
    assert records_of(tmp_path) == [b"{}"]
    with pytest.raises(LogRefused, match="closed"):
        log.append(b"{}")


def test_what_users_did_is_their_owners_alone(tmp_path):
    log = AppendLog(tmp_path / "logs" / "actions", writer="w")
    log.append(b"{}").result(timeout=10)
    (path,) = (tmp_path / "logs" / "actions").iterdir()
    assert [one.stat().st_mode & 0o777 for one in (path.parent, path)] == [0o700, 0o600]
    log.close()


def test_appenders_that_wait_together_share_an_fsync_and_keep_their_order(tmp_path):
    log = AppendLog(tmp_path, writer="w")

    def append_some(name):
        for number in range(50):
            log.append(b"%d-%d" % (name, number)).result(timeout=60)

    with ThreadPoolExecutor(32) as appenders:
        list(appenders.map(append_some, range(32)))
    log.close()
    lines = lines_of(tmp_path)
    assert len(lines) == 32 * 50
    for name in range(32):
        own = [line[PREFIX_BYTES:] for line in lines if line[PREFIX_BYTES:].startswith(b"%d-" % name)]
        assert own == [b"%d-%d" % (name, number) for number in range(50)]
    groups = sum(line[8:9] == b"+" for line in lines)
    assert groups < len(lines) / 2


def test_segments_are_sealed_by_size_and_by_age(tmp_path):
    log = AppendLog(tmp_path, writer="w", segment_bytes=100, segment_seconds=0.3)
    for number in range(4):
        log.append(b"%050d" % number).result(timeout=10)
    log.append(b"the last for now").result(timeout=10)
    until = time.monotonic() + 10
    while len(list(tmp_path.glob("*.log"))) < 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert [checked(path).records for path in sorted(tmp_path.glob("*.log"))] == [2, 2, 1]
    log.close()
    assert len(records_of(tmp_path)) == 5


def test_two_writers_of_one_name_share_a_folder(tmp_path):
    logs = [AppendLog(tmp_path, writer="w", segment_bytes=500) for _ in range(2)]

    def append_some(name):
        for number in range(100):
            logs[name].append(b"%d-%d" % (name, number)).result(timeout=60)
        logs[name].close()

    with ThreadPoolExecutor(2) as appenders:
        recovering = threading.Event()
        list_of_faults = []

        def keep_recovering():
            while not recovering.is_set():
                list_of_faults.extend(recover(tmp_path))

        other = threading.Thread(target=keep_recovering)
        other.start()
        list(appenders.map(append_some, range(2)))
        recovering.set()
        other.join()
    recover(tmp_path)
    assert list_of_faults == []
    assert sorted(records_of(tmp_path)) == sorted(b"%d-%d" % (name, i) for name in range(2) for i in range(100))


def test_a_living_writers_segment_is_left_alone_and_sealed_on_request(tmp_path):
    log = AppendLog(tmp_path, writer="w")
    for number in range(3):
        log.append(b"%d" % number).result(timeout=10)
        assert recover(tmp_path) == []
        assert list(tmp_path.glob("*.log")) == []
    seal_living(tmp_path, patience_s=10)
    assert records_of(tmp_path) == [b"0", b"1", b"2"]
    log.append(b"3").result(timeout=10)
    seal_living(tmp_path, patience_s=10)
    assert records_of(tmp_path) == [b"0", b"1", b"2", b"3"]
    log.close()


def test_a_request_to_seal_names_the_segment_of_a_writer_that_does_not_answer(tmp_path):
    path = tmp_path / "w.open"
    with path.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Exception, match=r"w\.open: its writer lives but has not sealed it within 0 s"):
            seal_living(tmp_path, patience_s=0.2)


def test_a_queue_that_is_full_refuses_at_once_and_what_it_took_is_written(tmp_path):
    log = AppendLog(tmp_path, writer="w", queue_bytes=2_000)
    taken = []

    def burst():
        for number in range(100_000):
            taken.append(log.append(b"%01000d" % number))

    with pytest.raises(LogRefused, match=r"bytes wait for the disk"):
        burst()
    for future in taken:
        future.result(timeout=10)
    log.close()
    assert records_of(tmp_path) == [b"%01000d" % number for number in range(len(taken))]


@pytest.mark.parametrize("line", [b"", b"a\nb"])
def test_what_is_no_line_is_refused(tmp_path, line):
    log = AppendLog(tmp_path, writer="w")
    with pytest.raises(ValueError, match="line"):
        log.append(line)
    log.close()


def test_the_interval_policy_writes_at_once_and_syncs_later(tmp_path):
    log = AppendLog(tmp_path, writer="w", fsync="interval", interval_s=0.2)
    for number in range(30):
        log.append(b"%d" % number).result(timeout=10)
        if number == 14:
            time.sleep(0.5)
    log.close()
    lines = lines_of(tmp_path)
    assert [line[PREFIX_BYTES:] for line in lines] == [b"%d" % number for number in range(30)]
    synced = [place for place, line in enumerate(lines) if line[8:9] == b"+"]
    assert synced[0] == 0
    assert 15 in synced
    assert len(synced) < 15


# The kernel refuses to make a file longer than the limit, as it refuses a full disk: after a part of the write.
FULL = """
import resource, signal, sys
from pathlib import Path
from serving.append_log import AppendLog
from serving.recovery import recover

folder = Path(sys.argv[1])
log = AppendLog(folder, writer="w")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
acknowledged, refused = [], []
for number in range(60):
    if number == 40:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    line = b"%050d" % number
    try:
        log.append(line).result(timeout=10)
        acknowledged.append(number)
    except OSError as error:
        refused.append(number)
        last = error
log.close()
print(acknowledged, refused, last.strerror, log.failed, sep="|")
"""


def test_a_full_disk_is_an_error_of_each_line_and_writing_goes_on_when_there_is_room(tmp_path):
    child = [sys.executable, "-c", FULL, str(tmp_path)]
    said = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    acknowledged, refused, reason, failed = said.strip().split("|")
    # 60 bytes a line: 16 of them fit.
    assert acknowledged == str([*range(16), *range(40, 60)])
    assert (refused, reason, failed) == (str([*range(16, 40)]), "File too large", "24")
    assert records_of(tmp_path) == [b"%050d" % number for number in (*range(16), *range(40, 60))]


def test_when_the_disk_does_not_take_what_was_written_the_lines_fail_and_the_next_go_to_a_new_segment(
    tmp_path, monkeypatch
):
    log = AppendLog(tmp_path, writer="w")
    log.append(b"0").result(timeout=10)
    monkeypatch.setattr("serving.open_segment.os.fdatasync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        log.append(b"1").result(timeout=10)
    monkeypatch.undo()
    log.append(b"2").result(timeout=10)
    assert len(list(tmp_path.glob("*.open"))) == 2
    log.close()
    assert recover(tmp_path) == []
    assert records_of(tmp_path) == [b"0", b"2"]


def test_a_seal_that_fails_where_standard_error_fails_too_is_no_end_of_the_log(tmp_path, monkeypatch):
    """A full disk takes neither the seal nor a word about it."""
    log = AppendLog(tmp_path, writer="w")
    log.append(b"0").result(timeout=10)
    monkeypatch.setattr("serving.open_segment.OpenSegment.seal", failing(errno.ENOSPC))
    monkeypatch.setattr("sys.stderr", (tmp_path / "full").open("w"))
    sys.stderr.close()
    (tmp_path / "seal.request").touch()
    until = time.monotonic() + 10
    while not recover(tmp_path) and not list(tmp_path.glob("*.log")):
        assert time.monotonic() < until, "the segment was not given up"
        time.sleep(0.02)
    monkeypatch.undo()
    log.append(b"1").result(timeout=10)
    log.close()
    assert records_of(tmp_path) == [b"0", b"1"]


def test_when_the_thread_ends_nobody_waits_and_nothing_more_is_taken(tmp_path, monkeypatch, capsys):
    log = AppendLog(tmp_path, writer="w")
    log.append(b"0").result(timeout=10)
    monkeypatch.setattr(log, "_sync_or_seal", failing(errno.EIO))
    monkeypatch.setattr(log, "_write", failing(errno.EIO))
    with pytest.raises(LogRefused, match="has ended"):
        log.append(b"1").result(timeout=10)
    with pytest.raises(LogRefused, match="has ended"):
        log.append(b"2").result(timeout=10)
    assert "Input/output error" in str(log.broken)
    assert "has ended, start the server again" in capsys.readouterr().err
    log.close()


def test_lines_that_belong_together_are_taken_or_refused_together(tmp_path):
    log = AppendLog(tmp_path, writer="w", queue_bytes=20)
    with pytest.raises(LogRefused):
        log.append_many([b"%010d" % number for number in range(3)])
    log.append_many([b"0", b"1"]).result(timeout=10)
    log.close()
    assert records_of(tmp_path) == [b"0", b"1"]
    assert log.appended == 2


def test_where_the_disk_fails_and_gives_nothing_back_nobody_says_that_nothing_was_taken(tmp_path, monkeypatch):
    log = AppendLog(tmp_path, writer="w")
    monkeypatch.setattr("serving.open_segment.os.fdatasync", failing(errno.EIO))
    monkeypatch.setattr("serving.open_segment.os.ftruncate", failing(errno.EIO))
    with pytest.raises(Uncertain, match="Input/output error"):
        log.append(b"1").result(timeout=10)
    monkeypatch.undo()
    log.close()


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


def killed_writer(folder, name, *, threads, fsync, after_s):
    """Start a writer, kill it after so long from its first acknowledgement, give what it acknowledged."""
    command = [sys.executable, "-m", "tests.serving.appending_program", str(folder), name, str(threads), fsync]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    first = writer.stdout.readline()
    timer = threading.Timer(after_s, writer.kill)
    timer.start()
    rest = writer.stdout.read()
    timer.cancel()
    assert writer.wait() == -9
    return (first + rest).decode().split()


@pytest.mark.slow
@pytest.mark.parametrize(("fsync", "kills"), [("always", 20), ("interval", 5)])
def test_what_was_acknowledged_is_there_exactly_once_after_kill_9(tmp_path, fsync, kills):
    choose = random.Random(kills)
    acknowledged = []
    for number in range(kills):
        after_s = choose.uniform(0, 0.1)
        threads = choose.choice([1, 8, 32])
        acknowledged += killed_writer(tmp_path, f"w{number}", threads=threads, fsync=fsync, after_s=after_s)
        if number % 3:
            assert recover(tmp_path) == []
    assert recover(tmp_path) == []
    assert list(tmp_path.glob("*.open")) == []
    times = Counter(re.search(rb'"action_id":"([^"]+)"', record)[1].decode() for record in records_of(tmp_path))
    assert set(times.values()) == {1}
    assert set(acknowledged) <= set(times)
    assert len(acknowledged) == len(set(acknowledged)) > 20 * kills
