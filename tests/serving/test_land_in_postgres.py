"""Landing in a real PostgreSQL: keys, a server that goes away and comes back, and the way on to the feedback job."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psycopg2
import pytest

from pipelines.launch import ROOT
from serving.land import main
from tests.postgres import Postgres, running_postgres
from tests.serving.records import MIDNIGHT_MS, action, impression, landed_rows, write_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ODD = ["", "NULL", "\\N", '"quoted", 1', "two\nlines\r\n", "\\", "tab\t", "Ωμέγα 🎬", "'); DROP TABLE actions; --"]


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture
def store(postgres: Postgres, monkeypatch, request):
    """Address of a database of the test's own; the password is where libpq looks."""
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    return postgres.store(f"logs_{time.time_ns()}")


def query(store, sql):
    with psycopg2.connect(store.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def landed(logs, to, *options):
    return main(["--logs", str(logs), "--to", str(to), *options])


def test_odd_values_are_the_same_in_postgres_exported_from_it_and_landed_as_parquet(tmp_path, store):
    logs = tmp_path / "logs"
    actions = [action(f"a{place}{odd}", user_id=odd, value=place / 3 or None) for place, odd in enumerate(ODD)]
    write_log(logs, "actions", actions)
    write_log(logs, "impressions", [impression(f"r{n}", time_ms=MIDNIGHT_MS - 2 + n, items=n) for n in range(4)])
    assert landed(logs, store) == 0
    assert query(store, 'SELECT user_id, value FROM actions ORDER BY action_id COLLATE "C"') == [
        (odd, place / 3 or None) for place, odd in enumerate(ODD)
    ]
    assert query(store, "SELECT items->1->>'item_id' FROM impressions WHERE request_id = 'r2'") == [("i1",)]
    assert main(["--from", store, "--to", str(tmp_path / "exported")]) == 0
    assert main(["--from", store, "--to", str(tmp_path / "exported")]) == 0
    assert landed(logs, tmp_path / "direct", "--delete-landed") == 0
    for kind, key in (("actions", "action_id"), ("impressions", "request_id")):
        direct = landed_rows(tmp_path / "direct", kind).sort_by(key)
        assert direct.num_rows == {"actions": len(ODD), "impressions": 4}[kind]
        assert landed_rows(tmp_path / "exported", kind).sort_by(key).equals(direct)


def test_an_id_that_is_there_already_changes_nothing_and_the_ledger_counts_it(tmp_path, store, capsys):
    logs = tmp_path / "logs"
    write_log(logs, "actions", [action("a1", value=1.0), action("a1", value=2.0), action("a2", value=3.0)])
    write_log(logs, "actions", [action("a2", value=4.0), action("a3", value=5.0)])
    assert landed(logs, store) == 0
    said = capsys.readouterr().out
    assert "3 records (2026-01-01: 2, there already: 1)" in said
    assert "2 records (2026-01-01: 1, there already: 1)" in said
    assert query(store, "SELECT action_id, value FROM actions ORDER BY 1") == [("a1", 1.0), ("a2", 3.0), ("a3", 5.0)]
    assert landed(logs, store) == 0
    assert query(store, "SELECT count(*) FROM actions") == [(3,)]
    assert main(["--from", store, "--to", str(tmp_path / "to")]) == 0
    assert sorted(landed_rows(tmp_path / "to", "actions").column("action_id").to_pylist()) == ["a1", "a2", "a3"]


def test_while_the_server_is_away_landing_waits_and_then_lands_each_record_once(tmp_path, store, postgres, capsys):
    logs = tmp_path / "logs"
    for segment in range(20):
        write_log(logs, "actions", [action(f"a{segment}-{number}") for number in range(50)])
    codes = []
    landing = threading.Thread(target=lambda: codes.append(landed(logs, store, "--delete-landed")))
    landing.start()
    said = ""
    while said.count("records") < 3:
        said += capsys.readouterr().out
        time.sleep(0.01)
    postgres.stop()
    write_log(logs, "impressions", [impression("r1")])
    time.sleep(1)
    postgres.start()
    landing.join(timeout=60)
    assert codes == [0]
    assert "; trying again in 0.5 s" in capsys.readouterr().err
    assert landed(logs, store) == 0
    expected = sorted((f"a{segment}-{number}",) for segment in range(20) for number in range(50))
    assert sorted(query(store, "SELECT action_id FROM actions")) == expected
    assert query(store, "SELECT count(*) FROM impressions") == [(1,)]
    assert query(store, "SELECT sum((entry->>'records')::int) FROM landed_segments") == [(1001,)]


def test_killed_at_any_moment_it_lands_each_record_once(tmp_path, store):
    logs = tmp_path / "logs"
    for segment in range(20):
        write_log(logs, "actions", [action(f"a{segment}-{number}") for number in range(20)])
    program = [sys.executable, "-m", "tests.serving.killed_landing_program", logs, store]
    rounds = subprocess.run([*program, "15", "0.15"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(rounds.stdout) >= 3
    expected = sorted((f"a{segment}-{number}",) for segment in range(20) for number in range(20))
    assert sorted(query(store, "SELECT action_id FROM actions")) == expected
    assert query(store, "SELECT count(*), sum((entry->>'known')::int) FROM landed_segments") == [(20, 0)]


def test_what_waiting_does_not_mend_is_one_line_at_once(tmp_path, store, postgres, capsys, monkeypatch):
    write_log(tmp_path / "logs", "actions", [action("a1"), action("nul\0")])
    assert landed(tmp_path / "logs", store.replace("logs_", "none_")) == 2
    assert "does not exist" in capsys.readouterr().err
    assert landed(tmp_path / "logs", store) == 2
    assert "PostgreSQL does not take a record: invalid byte sequence" in capsys.readouterr().err
    assert query(store, "SELECT count(*) FROM actions") == [(0,)]
    assert landed(tmp_path / "logs", store.replace("reader@", "reader:secret@")) == 2
    said = capsys.readouterr().err
    assert "the address holds a password" in said
    assert "secret" not in said
    monkeypatch.setenv("PGPASSWORD", "wrong")
    assert landed(tmp_path / "logs", store) == 2
    assert "password authentication failed" in capsys.readouterr().err
