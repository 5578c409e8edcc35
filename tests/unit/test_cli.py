"""The command line: its help, and one line with exit code 2 for a mistake."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipelines import cli, data, launch
from schemas.errors import UserError

GOLDEN = Path(__file__).parent / "golden"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main(list(arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_help_lists_every_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, shown, _ = answer(capsys, "--help")
    assert code == 0
    assert shown == (GOLDEN / "headrace-help.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["data", "ml100k", "--to", "nowhere"], "no data set 'ml100k'; did you mean 'ml-100k'?"),
        (["demo", "--rank", "x"], "invalid int value: 'x'"),
        (["data", "ml-100k", "--to", "a", "--fast"], "data does not know --fast"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, says):
    code, out, err = answer(capsys, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_program_that_fails_hands_its_exit_code_on(capfd):
    assert cli.main(["recommend", "--run", "/nowhere", "--user", "1"]) == 2
    assert "/nowhere/bundle is no bundle" in capfd.readouterr().err
    assert cli.main(["check", "/nowhere/at/all"]) == 2
    assert "/nowhere/at/all is no published folder" in capfd.readouterr().err
    assert cli.main(["check", "a", "--fast"]) == 2
    assert "--fast" in capfd.readouterr().err


def test_tune_without_optuna_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert answer(capsys, "tune") == (2, "", "headrace: tune searches with Optuna: install headrace[tracking].\n")


def test_programs_find_our_packages_and_this_python_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    environment = launch.environment()
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(launch.ROOT)
    assert (launch.ROOT / "schemas").is_dir()


def test_a_data_set_that_lies_there_whole_is_not_fetched_again_and_a_changed_file_is(tmp_path, monkeypatch):
    content = b"1\t2\n"
    monkeypatch.setitem(
        data.DATA_SETS,
        "tiny",
        data.DataSet(
            requirement="no-such-package-of-headrace==0",
            folder="x",
            files={"a.tsv": hashlib.sha256(content).hexdigest()},
            terms="ours",
        ),
    )
    (tmp_path / "a.tsv").write_bytes(content)
    assert data.fetch("tiny", tmp_path) == f"{tmp_path} holds tiny already"
    (tmp_path / "a.tsv").write_bytes(b"1\t3\n")
    with pytest.raises(UserError, match="cannot fetch tiny: pip download no-such-package-of-headrace==0 failed"):
        data.fetch("tiny", tmp_path)
