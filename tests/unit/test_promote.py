"""Promotion: what may go into service, where a rollback goes, and what the journal keeps."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from pipelines import promote
from pipelines.promote import JOURNAL, journal, read_champion
from schemas.durable import append_line
from schemas.gate import CheckResult, GateRules, GateVerdict
from schemas.release import read_release
from tests.unit.generations_on_disk import NOW, write, write_release


def release(root: Path, number: int, *, passed: bool = True) -> tuple[str, str]:
    """A release and its verdict against what is in service."""
    current = read_champion(root / "champion.json")
    folder = write_release(root / "generations" / f"{number:04d}" / "release", f"{number:04d}")
    check = CheckResult(check="drift", verdict="passed" if passed else "failed", reasons=("8 of 8 columns.",))
    verdict = GateVerdict(
        created_at=NOW,
        candidate=str(folder),
        candidate_id=f"{number:04d}",
        candidate_digest=read_release(folder).digest(),
        champion_id=current.id if current is not None else None,
        checks=(check,),
        rules=GateRules(),
    )
    write(folder.parent / "verdict.json", verdict)
    return str(folder), str(folder.parent / "verdict.json")


def put(root: Path, number: int) -> int:
    folder, verdict = release(root, number)
    return promote.main(["--release", folder, "--verdict", verdict, "--to", str(root / "champion.json")])


def back(root: Path) -> int:
    return promote.main(["--rollback", "--to", str(root / "champion.json")])


def chain(root: Path) -> list[str]:
    found, champion = [], read_champion(root / "champion.json")
    while champion is not None:
        found.append(champion.id)
        champion = champion.before
    return found


def test_the_file_names_the_release_from_its_own_folder_and_its_verdict(tmp_path):
    assert put(tmp_path, 1) == 0
    champion = json.loads((tmp_path / "champion.json").read_text())
    assert (champion["release"], champion["id"]) == ("generations/0001/release", "0001")
    assert champion["verdict"] == str(tmp_path / "generations/0001/verdict.json")
    assert champion["before"] is None


def test_a_rollback_goes_to_what_was_before_and_twice_goes_further(tmp_path, capsys):
    assert [put(tmp_path, number) for number in (1, 2, 3)] == [0, 0, 0]
    assert chain(tmp_path) == ["0003", "0002", "0001"]
    assert back(tmp_path) == 0
    assert chain(tmp_path) == ["0002", "0001"]
    assert back(tmp_path) == 0
    assert chain(tmp_path) == ["0001"]
    assert back(tmp_path) == 2
    assert "0001 is the first that was in service" in capsys.readouterr().err
    assert put(tmp_path, 4) == 0
    assert chain(tmp_path) == ["0004", "0001"]
    kept = [(line.action, line.id, line.before) for line in journal(tmp_path / "champion.json")]
    assert kept == [
        ("promote", "0001", None),
        ("promote", "0002", "0001"),
        ("promote", "0003", "0002"),
        ("rollback", "0002", "0003"),
        ("rollback", "0001", "0002"),
        ("promote", "0004", "0001"),
    ]


def test_ten_releases_before_are_remembered(tmp_path):
    for number in range(1, 14):
        assert put(tmp_path, number) == 0
    assert chain(tmp_path) == [f"{number:04d}" for number in range(13, 2, -1)]


def test_promoting_what_is_in_service_changes_nothing(tmp_path):
    assert [put(tmp_path, 1), put(tmp_path, 2)] == [0, 0]
    before = (tmp_path / "champion.json").read_text()
    assert put(tmp_path, 2) == 0
    assert (tmp_path / "champion.json").read_text() == before
    assert len(journal(tmp_path / "champion.json")) == 2


@pytest.mark.parametrize("what", ["none", "missing", "refused", "another's", "damaged"])
def test_without_a_passed_verdict_of_its_own_a_release_stays_out(tmp_path, capsys, what):
    folder, verdict = release(tmp_path, 2, passed=what != "refused")
    _, other = release(tmp_path, 1)
    if what == "damaged":
        Path(verdict).write_text("{")
    given = {"none": [], "missing": ["--verdict", "/nowhere.json"], "another's": ["--verdict", other]}
    arguments = ["--release", folder, "--to", str(tmp_path / "champion.json")]
    assert promote.main([*arguments, *given.get(what, ["--verdict", verdict])]) == 2
    says = {
        "none": "0002 has no verdict: give --verdict",
        "missing": "/nowhere.json does not exist",
        "refused": "the gate has refused 0002 for drift",
        "another's": "verdict.json is of 0001 in",
        "damaged": "is no verdict that can be read",
    }
    shown = capsys.readouterr().err
    assert says[what] in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "champion.json").exists()


def test_a_verdict_counts_against_the_champion_that_it_names_alone(tmp_path, capsys):
    assert put(tmp_path, 1) == 0
    old, verdict = release(tmp_path, 2)
    assert put(tmp_path, 3) == 0
    arguments = ["--release", old, "--to", str(tmp_path / "champion.json")]
    assert promote.main([*arguments, "--verdict", verdict]) == 2
    assert "is against 0001, and 0003 is in service: hold 0002 against that" in capsys.readouterr().err
    assert chain(tmp_path) == ["0003", "0001"]
    assert promote.main([*arguments, "--verdict", verdict, "--force", "0003 is slow"]) == 0
    assert chain(tmp_path) == ["0002", "0003", "0001"]


def test_a_release_that_was_made_again_has_no_verdict(tmp_path, capsys):
    folder, verdict = release(tmp_path, 1)
    path = Path(folder) / "release.json"
    path.write_text(path.read_text().replace('"code_version": "test"', '"code_version": "other"'))
    assert promote.main(["--release", folder, "--verdict", verdict, "--to", str(tmp_path / "champion.json")]) == 2
    assert "0001 was made again since" in capsys.readouterr().err
    assert not (tmp_path / "champion.json").exists()


def test_force_stands_in_for_a_verdict_and_its_reason_is_kept(tmp_path, capsys):
    folder, verdict = release(tmp_path, 1, passed=False)
    arguments = ["--release", folder, "--to", str(tmp_path / "champion.json"), "--verdict", verdict]
    assert promote.main([*arguments, "--force", " "]) == 2
    assert "--force wants the reason" in capsys.readouterr().err
    assert promote.main([*arguments, "--force", "the log moved to new tabs"]) == 0
    assert [line.forced for line in journal(tmp_path / "champion.json")] == ["the log moved to new tabs"]


def test_a_folder_that_is_no_release_stays_out(tmp_path, capsys):
    assert promote.main(["--release", str(tmp_path), "--force", "x", "--to", str(tmp_path / "champion.json")]) == 2
    assert "is no release: it has no release.json" in capsys.readouterr().err


def test_a_rollback_to_a_release_that_is_gone_is_refused_and_what_serves_stays(tmp_path, capsys):
    assert [put(tmp_path, 1), put(tmp_path, 2)] == [0, 0]
    (tmp_path / "generations/0001/release/release.json").unlink()
    assert back(tmp_path) == 2
    assert "is no release" in capsys.readouterr().err
    assert chain(tmp_path) == ["0002", "0001"]


def test_a_line_that_a_kill_cut_short_spoils_no_later_one(tmp_path):
    assert put(tmp_path, 1) == 0
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes() + b'{"at": "2026')
    assert put(tmp_path, 2) == 0
    assert [line.id for line in journal(tmp_path / "champion.json")] == ["0001", "0002"]


def test_a_journals_line_is_on_a_line_of_its_own(tmp_path):
    for line in ("a", "b"):
        append_line(tmp_path / "j", line)
    assert (tmp_path / "j").read_text() == "a\nb\n"


def test_promotions_at_once_follow_one_another(tmp_path):
    folders = [release(tmp_path, number)[0] for number in range(1, 6)]
    arguments = [
        ["--release", folder, "--force", "race", "--to", str(tmp_path / "champion.json")] for folder in folders
    ]
    running = [multiprocessing.get_context("fork").Process(target=promote.main, args=(one,)) for one in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert sorted(chain(tmp_path)) == ["0001", "0002", "0003", "0004", "0005"]


def test_registry_options_belong_together(tmp_path, capsys):
    with pytest.raises(SystemExit):
        promote.main(["--rollback", "--to", str(tmp_path / "champion.json"), "--track", "env"])
    assert "--track and --model belong together" in capsys.readouterr().err
