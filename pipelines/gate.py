"""The gate: may a candidate be promoted? Every check with its reasons, and the verdict of them all in one file.

A report that is missing fails its check, and so does a baseline that is missing where there is a champion: what could
not be looked at is not fine. Exit code 0: passed, 3: refused, 2: the command was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from pipelines import registry
from pipelines.gating.data_quality import data_quality
from pipelines.gating.earnings import off_policy
from pipelines.gating.evidence import Evidence, Finding, NoEvidence, read
from pipelines.gating.quality import calibration, metrics, slices
from pipelines.gating.shift import drift, skew
from schemas.durable import write_text
from schemas.errors import UserError
from schemas.gate import REFUSED, Check, CheckResult, GateRules, GateVerdict
from schemas.programs import Parser, answering_mistakes
from schemas.release import RELEASE, Release, read_champion
from schemas.settings import parse_model, read_yaml
from schemas.storage import absolute
from schemas.wheel import CHAMPION

CHECKS: dict[Check, Callable[[Evidence], Finding]] = {
    "data_quality": data_quality,
    "drift": drift,
    "skew": skew,
    "metrics": metrics,
    "slices": slices,
    "calibration": calibration,
    "off_policy": off_policy,
}
_STYLES = {"passed": "green", "failed": "bold red", "waived": "yellow"}


def judge(evidence: Evidence) -> GateVerdict:
    """Every check on the candidate; UserError where there is no release to judge."""
    folder = evidence.candidate / "release"
    release = _release(folder)
    champion = None if evidence.champion is None else _release(evidence.champion / "release").id
    if champion == release.id:
        raise UserError(f"{folder} is {release.id}, and so is the champion: a release is not held against itself.")
    return GateVerdict(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        candidate=str(folder),
        candidate_id=release.id,
        candidate_digest=release.digest(),
        champion_id=champion,
        checks=tuple(result_of(name, evidence) for name in CHECKS),
        rules=evidence.rules,
    )


def result_of(name: Check, evidence: Evidence) -> CheckResult:
    """One check; a waived one says what it would have come to."""
    try:
        found = CHECKS[name](evidence)
    except NoEvidence as error:
        found = Finding(passed=False, reasons=(str(error),))
    files = tuple(str(file) for file in found.files)
    verdict: Literal["passed", "failed"] = "passed" if found.passed else "failed"
    if name not in evidence.rules.waived:
        return CheckResult(check=name, verdict=verdict, reasons=found.reasons, evidence=files)
    reasons = (f"Waived by the rules; it would have {verdict}.", *found.reasons)
    return CheckResult(check=name, verdict="waived", reasons=reasons, evidence=files)


def read_rules(path: str) -> GateRules:
    """Rules of a file of their own, or those under `gate:` of a wheel.yaml."""
    if Path(path).suffix not in (".yaml", ".yml"):
        raise UserError(f"--rules {path}: rules are a file that ends in .yaml, or a wheel.yaml.")
    raw, where = read_yaml(path, catalogue=Path(path).parent, what="rules")
    if isinstance(raw, dict) and ("gate" in raw or {"contract", "feedback", "raw"} <= set(raw)):
        return parse_model(GateRules, raw.get("gate") or {}, where=f"{where}, gate")
    return parse_model(GateRules, raw or {}, where=where)


def table_of(verdict: GateVerdict) -> Table:
    against = f"against {verdict.champion_id}" if verdict.champion_id is not None else "the first, no champion"
    outcome = "passed" if verdict.passed else "refused"
    table = Table(title=f"Gate: {verdict.candidate_id} {against}: {outcome}", title_justify="left", show_lines=True)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("reasons", overflow="fold")
    for check in verdict.checks:
        table.add_row(check.check, check.verdict, "\n".join(check.reasons), style=_STYLES[check.verdict])
    return table


def gate(given: argparse.Namespace) -> GateVerdict:
    candidate = Path(absolute(given.candidate))
    champion = None if given.champion is None else Path(absolute(given.champion))
    for folder in filter(None, (candidate, champion)):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder of a generation.")
    evidence = Evidence(candidate=candidate, champion=champion, rules=read_rules(given.rules))
    if champion is None:
        _refuse_forgotten_champion(candidate)
    verdict = judge(evidence)
    try:
        write_text(Path(absolute(given.out)), verdict.model_dump_json(indent=1))
    except OSError as error:
        raise UserError(f"--out {given.out} cannot be written: {error.strerror}.") from None
    Console(markup=False, emoji=False).print(table_of(verdict))
    failed = [check.check for check in verdict.checks if check.verdict == "failed"]
    ends = "passed" if verdict.passed else f"refused for {', '.join(failed)}"
    print(f"gate: {verdict.candidate_id} {ends}; {given.out}")
    return verdict


def _release(folder: Path) -> Release:
    try:
        return read(Release, folder / RELEASE, made_by="headrace release")
    except NoEvidence as error:
        raise UserError(str(error)) from None


def _refuse_forgotten_champion(candidate: Path) -> None:
    """UserError where there is a champion that nobody named: the first generation is let through on less."""
    beside = next(iter(sorted(candidate.glob("champion-*.json"))), None)
    if beside is not None:
        raise UserError(f"{beside} says that there is a champion: name its generation with --champion.")
    in_service = candidate.parent.parent / CHAMPION
    champion = read_champion(in_service)
    if champion is not None and champion.id != _release(candidate / "release").id:
        raise UserError(f"{in_service} says that {champion.id} is in service: name its generation with --champion.")


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--candidate", required=True, metavar="DIR", help="folder of the candidate's generation")
    command.add_argument("--champion", metavar="DIR", help="that of the champion (none: the first generation)")
    command.add_argument("--rules", required=True, metavar="FILE", help="YAML with rules, or a wheel.yaml")
    command.add_argument("--out", required=True, metavar="FILE", help="verdict.json to write")
    registry.add_options(command, "the candidate as challenger")
    given = command.parse_args(arguments)
    registry.check_options(command, given)
    verdicts: list[GateVerdict] = []
    code = answering_mistakes("gate", lambda: verdicts.append(gate(given)))
    if code == 0 and given.track is not None:
        # A registry that does not answer says so, and decides nothing.
        registry.register(Path(verdicts[0].candidate), given, alias="challenger", verdict=absolute(given.out))
    return code or (0 if verdicts[0].passed else REFUSED)


if __name__ == "__main__":
    sys.exit(main())
