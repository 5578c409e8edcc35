"""The end of a server comes within bounds, whatever hangs."""

from __future__ import annotations

import threading
import time

import pytest

from schemas.errors import UserError
from serving import workers
from serving.append_log import AppendLog
from serving.follow import Follower, read_champion
from serving.workers import Workers
from tests.serving.releases import make_champion


def test_a_log_whose_disk_hangs_is_not_waited_for(tmp_path, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr("serving.open_segment.os.fdatasync", lambda _: hangs.wait(30))
    log = AppendLog(tmp_path, writer="w")
    written = log.append(b"1")
    begun = time.monotonic()
    log.close(patience_s=0.1)
    assert time.monotonic() - begun < 5
    assert not written.done()
    hangs.set()
    written.result(timeout=10)


def test_a_release_that_is_still_being_loaded_is_not_waited_for_and_comes_to_nothing(tmp_path):
    make_champion(tmp_path, tmp_path / "0001", "0001")
    loading, loaded, swapped = threading.Event(), threading.Event(), []

    def load(_):
        loading.set()
        loaded.wait(30)
        return type("Engine", (), {"release": type("Release", (), {"id": "0002"})})

    first = read_champion(tmp_path / "champion.json")
    follower = Follower(tmp_path / "champion.json", first, load=load, swap=swapped.append, problem=lambda _: None)
    follower.start()
    make_champion(tmp_path, tmp_path / "0002", "0002")
    follower.wake()
    assert loading.wait(10)
    begun = time.monotonic()
    follower.close(patience_s=0.1)
    assert time.monotonic() - begun < 5
    loaded.set()
    follower.close()
    assert swapped == []


def test_a_process_that_does_not_end_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "_ENDS_WITHIN_S", 0.2)
    ready = tmp_path / "ready"
    deaf = ["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done"]
    both = Workers([deaf, ["sh", "-c", f"while [ ! -e {ready} ]; do sleep 0.05; done; exit 2"]])
    begun = time.monotonic()
    with pytest.raises(UserError, match="process 2 of 2 cannot start"):
        both.run()
    assert time.monotonic() - begun < 15
    assert "does not end; it is killed" in capsys.readouterr().err


def test_a_process_that_died_and_cannot_start_again_is_tried_again_while_the_others_serve(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(workers, "RESTARTS_AFTER_S", 0.1)
    starts = tmp_path / "starts"
    # Its first start dies as by a signal, the next ones find a broken champion; after three the server is ended.
    command = f"echo >> {starts}; n=$(wc -l < {starts}); [ $n = 1 ] && exit 1; [ $n = 4 ] && kill $PPID; exit 2"
    both = Workers([["sleep", "60"], ["sh", "-c", command]])
    both.run()
    assert starts.read_text().count("\n") == 4
    said = capsys.readouterr().err
    assert "process 2 ended with 1; it is started again in 0.1 s" in said
    assert [f"ended with 2; it is started again in {wait} s" in said for wait in ("0.1", "0.2")] == [True, True]
