"""Landing: each record of a sealed segment becomes one row of its day, once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest

from pipelines.launch import ROOT
from schemas.landed import Landed
from schemas.served import ACTION_COLUMNS, IMPRESSION_COLUMNS
from serving.append_log import AppendLog
from serving.land import land, main
from serving.open_segment import OpenSegment
from serving.parquet_days import ParquetDays
from tests.serving.records import MIDNIGHT_MS, action, impression, landed_rows, line, write_log


def landed(logs, to, *options):
    return main(["--logs", str(logs), "--to", str(to), *options])


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_response_becomes_a_row_in_the_columns_that_the_jobs_read(tmp_path):
    write_log(tmp_path / "logs", "impressions", [impression("r1", items=2), impression("r2", items=0)])
    assert landed(tmp_path / "logs", tmp_path / "to") == 0
    rows = landed_rows(tmp_path / "to", "impressions")
    assert rows.drop_columns("day").schema.equals(IMPRESSION_COLUMNS)
    assert rows.to_pylist() == [
        {
            "request_id": "r1",
            "time_ms": MIDNIGHT_MS,
            "generation": "0001",
            "user_id": 'u "1", ü',
            "policy": "epsilon_greedy(0.1)",
            "context": '{"hour":3,"device":"tv"}',
            "features": '{"history":[5,6,7]}',
            "items": [
                {
                    "item_id": "i0",
                    "position": 0,
                    "score": 0.0,
                    "propensity": 0.5,
                    "explored": False,
                    "features": '{"genre":[2,3],"age":0.25}',
                },
                {
                    "item_id": "i1",
                    "position": 1,
                    "score": 0.1,
                    "propensity": 0.5,
                    "explored": True,
                    "features": '{"genre":[2,3],"age":0.25}',
                },
            ],
            "num_candidates": 200,
            "fallback": None,
            "day": "2026-01-01",
        },
        {
            "request_id": "r2",
            "time_ms": MIDNIGHT_MS,
            "generation": "0001",
            "user_id": 'u "1", ü',
            "policy": "epsilon_greedy(0.1)",
            "context": '{"hour":3,"device":"tv"}',
            "features": '{"history":[5,6,7]}',
            "items": [],
            "num_candidates": 200,
            "fallback": None,
            "day": "2026-01-01",
        },
    ]


def test_what_a_record_leaves_out_is_its_default(tmp_path):
    record = b'{"action_id":"a","request_id":"r","item_id":"i","user_id":"u","action":"like","time_ms":0}'
    write_log(tmp_path / "logs", "actions", [record])
    landed(tmp_path / "logs", tmp_path / "to")
    rows = landed_rows(tmp_path / "to", "actions")
    assert rows.drop_columns("day").schema.equals(ACTION_COLUMNS)
    assert rows.column("value").to_pylist() == [None]
    assert rows.column("day").to_pylist() == ["1970-01-01"]


def test_a_segment_over_midnight_lands_in_both_days_and_the_ledger_says_how(tmp_path):
    records = [action(f"a{number}", time_ms=MIDNIGHT_MS + number) for number in range(-2, 3)]
    write_log(tmp_path / "logs", "actions", records)
    (one,) = land(tmp_path / "logs", ParquetDays(tmp_path / "to"))
    assert (one.records, one.rows) == (5, {"2025-12-31": 2, "2026-01-01": 3})
    assert files_below(tmp_path / "to") == {
        f"actions/day=2025-12-31/{one.segment}.parquet",
        f"actions/day=2026-01-01/{one.segment}.parquet",
        f"ledger/actions/{one.segment}.json",
    }
    ledger = tmp_path / "to" / "ledger" / "actions" / f"{one.segment}.json"
    assert Landed.model_validate(json.loads(ledger.read_text())) == one
    rows = landed_rows(tmp_path / "to", "actions")
    assert rows.column("action_id").to_pylist() == ["a-2", "a-1", "a0", "a1", "a2"]
    assert rows.column("day").to_pylist() == ["2025-12-31"] * 2 + ["2026-01-01"] * 3


def test_what_has_landed_does_not_land_again_also_when_its_segment_stays(tmp_path):
    write_log(tmp_path / "logs", "actions", [action("a1")])
    sink = ParquetDays(tmp_path / "to")
    assert len(land(tmp_path / "logs", sink)) == 1
    assert land(tmp_path / "logs", sink) == []
    write_log(tmp_path / "logs", "actions", [action("a2")])
    assert len(land(tmp_path / "logs", sink, keep_hours=1)) == 1
    assert len(list((tmp_path / "logs" / "actions").iterdir())) == 2
    assert land(tmp_path / "logs", sink, keep_hours=0) == []
    assert list((tmp_path / "logs" / "actions").iterdir()) == []
    assert sorted(landed_rows(tmp_path / "to", "actions").column("action_id").to_pylist()) == ["a1", "a2"]


def test_with_seal_all_that_a_running_writer_acknowledged_lands(tmp_path):
    logs, to = tmp_path / "logs", tmp_path / "to"
    running = [AppendLog(logs / kind, writer="w") for kind in ("impressions", "actions")]
    running[0].append(line(impression("r1"))).result(timeout=10)
    running[1].append(line(action("a1"))).result(timeout=10)
    assert landed(logs, to) == 0
    assert landed_rows(to, "impressions").num_rows == 0
    assert landed(logs, to, "--seal") == 0
    running[1].append(line(action("a2"))).result(timeout=10)
    assert landed(logs, to, "--seal") == 0
    assert landed_rows(to, "impressions").column("request_id").to_pylist() == ["r1"]
    assert landed_rows(to, "actions").column("action_id").to_pylist() == ["a1", "a2"]
    for log in running:
        log.close()


def test_damaged_segments_are_named_and_all_others_land(tmp_path, capsys):
    logs, to = tmp_path / "logs", tmp_path / "to"
    for records in ([action("a1")], [action("a2"), action("a3")], [action("a4")]):
        write_log(logs, "actions", records)
    damaged = next(path for path in (logs / "actions").glob("*.log") if b'"a2"' in path.read_bytes())
    damaged.write_bytes(damaged.read_bytes().replace(b'"a3"', b'"a5"'))
    assert landed(logs, to, "--delete-landed") == 2
    said = capsys.readouterr().err
    at = damaged.read_bytes().index(b"\n") + 1
    assert f"segment {damaged} is damaged: the line at byte {at} is not what was written (1 whole ones" in said
    assert sorted(landed_rows(to, "actions").column("action_id").to_pylist()) == ["a1", "a4"]
    assert list((logs / "actions").glob("*.log")) == [damaged]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b'{"action_id":"a"}', "a record has no 'request_id'"),
        (line(action("a"))[:-1] + b',"mood":1}', "a record has 'mood', which this release of Headrace does not know"),
        (line(action("a")).replace(b'"user_id":"u1"', b'"user_id":null'), "a record has null for 'user_id'"),
        (line(action("a")).replace(b'"user_id":"u1"', b'"user_id":17'), "a record does not fit its columns: "),
        (b"not JSON", "a record does not fit its columns: "),
    ],
)
def test_a_record_that_does_not_fit_is_named_and_nothing_of_its_segment_lands(tmp_path, capsys, record, said):
    write_log(tmp_path / "logs", "actions", [action("a1"), record])
    assert landed(tmp_path / "logs", tmp_path / "to") == 2
    assert said in capsys.readouterr().err
    assert files_below(tmp_path / "to") == set()


def test_a_segment_of_another_log_with_the_same_name_is_no_segment_that_has_landed(tmp_path, capsys):
    logs = tmp_path / "logs"
    write_log(logs, "actions", [action("a1")])
    landed(logs, tmp_path / "to")
    (path,) = (logs / "actions").glob("*.log")
    path.unlink()
    write_log(logs, "actions", [action("a2")])
    next((logs / "actions").glob("*.log")).rename(path)
    assert landed(logs, tmp_path / "to") == 2
    assert "has landed before with other content" in capsys.readouterr().err


def test_two_that_land_at_once_land_each_record_once(tmp_path):
    groups = [[action(f"a{segment}-{number}") for number in range(20)] for segment in range(10)]
    for records in groups:
        write_log(tmp_path / "logs", "actions", records)
    both = [
        threading.Thread(target=landed, args=(tmp_path / "logs", tmp_path / "to", "--delete-landed")) for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    rows = landed_rows(tmp_path / "to", "actions").column("action_id").to_pylist()
    assert sorted(rows) == sorted(record.action_id for group in groups for record in group)


FULL = """
import resource, sys
from serving.land import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
sys.exit(main(["--logs", sys.argv[1], "--to", sys.argv[2]]))
"""


def test_on_a_full_disk_nothing_is_left_behind_and_the_same_command_goes_on(tmp_path):
    logs, to = tmp_path / "logs", tmp_path / "to"
    write_log(logs, "actions", [action(f"a{number**5 % 7919}") for number in range(500)])
    full = subprocess.run(
        [sys.executable, "-c", FULL, str(logs), str(to)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert full.returncode == 2
    assert "cannot be written to" in full.stderr
    assert len(full.stderr.splitlines()) == 1
    assert files_below(to) == set()
    assert landed(logs, to) == 0
    assert landed_rows(to, "actions").num_rows == 500


NO_ROOM_FOR_SEALS = """
import resource, sys
from serving.land import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
sys.exit(main(["--logs", sys.argv[1], "--to", sys.argv[2], "--delete-landed"]))
"""


def test_on_a_disk_too_full_for_a_seal_what_has_landed_goes_all_the_same(tmp_path):
    logs, to = tmp_path / "logs", tmp_path / "to"
    write_log(logs, "actions", [action("a1")])
    assert landed(logs, to) == 0
    dead = OpenSegment(logs / "actions", "dead")
    dead.append([line(action("a2"))], sync=True)
    dead.abandon()
    full = subprocess.run(
        [sys.executable, "-c", NO_ROOM_FOR_SEALS, str(logs), str(to)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert full.returncode == 2
    assert f"segment {dead.path} cannot be sealed: [Errno 27]" in full.stderr
    assert list((logs / "actions").iterdir()) == [dead.path]
    assert landed(logs, to) == 0
    assert sorted(landed_rows(to, "actions").column("action_id").to_pylist()) == ["a1", "a2"]


def test_a_folder_of_logs_that_is_not_there_is_one_line(tmp_path, capsys):
    assert landed(tmp_path / "none", tmp_path / "to") == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_watching_lands_what_comes_until_it_is_told_to_end(tmp_path):
    logs, to = tmp_path / "logs", tmp_path / "to"
    logs.mkdir()
    command = [sys.executable, "-m", "pipelines.cli", "land", "--logs", logs, "--to", to, "--seal", "--watch", "0.1"]
    watching = subprocess.Popen(command, cwd=ROOT)
    log = AppendLog(logs / "actions", writer="w")
    try:
        for number in range(1, 4):
            log.append(line(action(f"a{number}"))).result(timeout=10)
            until = time.monotonic() + 60
            while landed_rows(to, "actions").num_rows < number:
                assert watching.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
    finally:
        watching.terminate()
        watching.wait(timeout=30)
        log.close()
    assert sorted(landed_rows(to, "actions").column("action_id").to_pylist()) == ["a1", "a2", "a3"]


@pytest.mark.slow
def test_killed_at_any_moment_it_lands_each_record_once(tmp_path):
    groups = [
        [action(f"a{segment}-{number}", time_ms=MIDNIGHT_MS + number - 10) for number in range(20)]
        for segment in range(60)
    ]
    for records in groups:
        write_log(tmp_path / "logs", "actions", records)
    program = [sys.executable, "-m", "tests.serving.killed_landing_program", tmp_path / "logs", tmp_path / "to"]
    rounds = subprocess.run([*program, "40", "0.04"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(rounds.stdout) >= 5
    rows: pa.Table = landed_rows(tmp_path / "to", "actions")
    assert sorted(rows.column("action_id").to_pylist()) == sorted(r.action_id for group in groups for r in group)
    assert list((tmp_path / "logs" / "actions").iterdir()) == []
    assert not [name for name in files_below(tmp_path / "to") if name.endswith(".draft")]
