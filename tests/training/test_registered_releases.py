"""Releases in MLflow's registry: a version each, tags that say why, and a champion that follows promotion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import gate, promote
from schemas.gate import CheckResult, GateRules, GateVerdict
from schemas.release import read_release
from tests.postgres import running_postgres
from tests.unit.generations_on_disk import NOW, write, write_generation, write_release
from training import register_release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def client(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def judged_release(root: Path, number: int) -> Path:
    folder = write_release(root / f"{number:04d}" / "release", f"{number:04d}")
    current = promote.read_champion(root / "champion.json")
    check = CheckResult(check="drift", verdict="waived", reasons=("Waived.",))
    verdict = GateVerdict(
        created_at=NOW, candidate=str(folder), candidate_id=f"{number:04d}", checks=(check,), rules=GateRules(),
        candidate_digest=read_release(folder).digest(), champion_id=current.id if current else None,
    )  # fmt: skip
    write(folder.parent / "verdict.json", verdict)
    return folder


def put(root: Path, number: int, uri: str) -> int:
    folder = judged_release(root, number)
    to = ["--to", str(root / "champion.json"), "--track", uri, "--model", "videos"]
    return promote.main(["--release", str(folder), "--verdict", str(folder.parent / "verdict.json"), *to])


def aliases(uri: str) -> dict[str, str]:
    return {name: str(version) for name, version in client(uri).get_registered_model("videos").aliases.items()}


def champion(uri: str) -> tuple[str, dict[str, str]]:
    found = client(uri).get_model_version_by_alias("videos", "champion")
    return str(found.version), dict(found.tags)


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'mlflow.db'}"
        return
    with running_postgres() as server:
        monkeypatch.setenv("PGPASSWORD", server.password)
        yield server.store("registry")


def test_the_champion_of_the_registry_follows_promotion_and_rollback(uri, tmp_path, capfd):
    challenger = judged_release(tmp_path, 1)
    asked = ["--release", str(challenger), "--track", uri, "--model", "videos", "--alias", "challenger"]
    assert register_release.main(asked) == 0
    assert aliases(uri) == {"challenger": "1"}

    assert put(tmp_path, 1, uri) == 0
    version, tags = champion(uri)
    assert version == "1", "registered once"
    assert (tags["headrace.generation"], tags["headrace.verdict"]) == ("0001", "passed")
    assert (tags["headrace.checks"], tags["headrace.snapshot_digest"]) == ("drift waived", "d")
    assert aliases(uri) == {"champion": "1"}, "no challenger any longer"

    assert put(tmp_path, 2, uri) == 0
    assert champion(uri)[0] == "2"
    back = ["--rollback", "--to", str(tmp_path / "champion.json"), "--track", uri, "--model", "videos"]
    assert promote.main(back) == 0
    version, tags = champion(uri)
    assert (version, tags["headrace.generation"]) == ("1", "0001")
    files = client(uri).list_artifacts(client(uri).get_model_version("videos", "1").run_id, "release")
    assert [file.path for file in files] == ["release/release.json"]
    assert "register: release 0001 was version 1 of videos, which is its champion" in capfd.readouterr().out


def judge(root: Path, uri: str, rules: str) -> int:
    """The first generation, by the gate."""
    write_generation(root, "0001", champion=False)
    (root / "rules.yaml").write_text(rules)
    places = ["--candidate", str(root / "generations" / "0001"), "--out", str(root / "verdict.json")]
    return gate.main([*places, "--rules", str(root / "rules.yaml"), "--track", uri, "--model", "videos"])


def test_the_last_candidate_that_the_gate_judged_is_the_challenger_with_its_verdict(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def tags() -> dict[str, str]:
        found = client(uri).get_model_version_by_alias("videos", "challenger")
        return {name: found.tags[f"headrace.{name}"] for name in ("generation", "verdict")}

    assert judge(tmp_path, uri, "min_rows: 1000000") == 3
    assert tags() == {"generation": "0001", "verdict": "refused"}
    assert judge(tmp_path, uri, "min_rows: 1") == 0
    assert tags() == {"generation": "0001", "verdict": "passed"}
    release = ["--release", str(tmp_path / "generations" / "0001" / "release"), "--to", str(tmp_path / "champion.json")]
    to = [*release, "--verdict", str(tmp_path / "verdict.json"), "--track", uri, "--model", "videos"]
    assert promote.main(to) == 0
    assert aliases(uri) == {"champion": "1"}, "no challenger any longer"


def test_a_refused_candidate_that_was_forced_is_still_said_to_be_refused(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert judge(tmp_path, uri, "min_rows: 1000000") == 3
    to = [
        "--to",
        str(tmp_path / "champion.json"),
        "--track",
        uri,
        "--model",
        "videos",
        "--force",
        "nothing else is there",
    ]
    assert promote.main(["--release", str(tmp_path / "generations" / "0001" / "release"), *to]) == 0
    _, tags = champion(uri)
    assert (tags["headrace.verdict"], tags["headrace.forced"]) == ("refused", "nothing else is there")


def test_a_registry_that_is_away_is_told_and_the_gates_verdict_stands(tmp_path, capfd):
    assert judge(tmp_path, "http://127.0.0.1:1", "min_rows: 1") == 0
    assert "register: cannot register in MLflow at http://127.0.0.1:1" in capfd.readouterr().err
    assert GateVerdict.model_validate_json((tmp_path / "verdict.json").read_text()).passed


def test_a_registry_that_is_away_is_told_and_the_release_is_in_service_all_the_same(tmp_path, capfd):
    assert put(tmp_path, 1, "http://127.0.0.1:1") == 2
    shown = capfd.readouterr()
    assert "register: cannot register in MLflow at http://127.0.0.1:1" in shown.err
    assert "promote: 0001 is in service" in shown.out
    found = promote.read_champion(tmp_path / "champion.json")
    assert found is not None
    assert found.id == "0001"
