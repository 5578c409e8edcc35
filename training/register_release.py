"""Register a release in MLflow's model registry, with what the gate said of it; `headrace promote --track` does so."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from schemas.errors import UserError
from schemas.gate import GateVerdict
from schemas.programs import Parser, answering_mistakes
from schemas.release import Release, read_release
from schemas.storage import absolute
from training.mlflow_store import MlflowStore
from training.register import check_names
from training.tracking import EXPERIMENT, uri_of


def register(given: argparse.Namespace) -> None:
    """Make the release a version of the model, unless it is one, and point the alias at it."""
    folder = Path(absolute(given.release))
    check_names(given.model, given.alias)
    uri = uri_of(given.track)
    release = read_release(folder)
    tags = tags_of(release, folder, verdict=given.verdict, forced=given.forced)
    try:
        version, is_new = MlflowStore(uri).register_release(
            folder,
            name=f"release {release.id}",
            experiment=given.experiment,
            model=given.model,
            tags=tags,
            alias=given.alias,
        )
    except Exception as error:
        why = str(error).strip().splitlines()
        raise UserError(f"cannot register in MLflow at {uri}: {why[0] if why else type(error).__name__}") from None
    named = f", which is its {given.alias}" if given.alias else ""
    print(f"register: release {release.id} {'is' if is_new else 'was'} version {version} of {given.model}{named}")


def tags_of(release: Release, folder: Path, *, verdict: str | None, forced: str | None) -> dict[str, str]:
    """What a version says of the release: its generation, what it was made of, and why it was let in."""
    tags = {
        "headrace.generation": release.id,
        "headrace.release": str(folder),
        "headrace.snapshot_id": release.snapshot.id,
        "headrace.snapshot_digest": release.snapshot.digest,
        "headrace.code_version": release.code_version,
    }
    if verdict is not None:
        try:
            found = GateVerdict.model_validate_json(Path(verdict).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{verdict} is no verdict that can be read.") from None
        tags["headrace.verdict"] = "passed" if found.passed else "refused"
        tags["headrace.checks"] = ", ".join(f"{check.check} {check.verdict}" for check in found.checks)
    if forced is not None:
        tags["headrace.forced"] = forced
    return tags


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.register_release", description=__doc__)
    command.add_argument("--release", required=True, help="folder of a release")
    command.add_argument("--model", required=True, help="name of the registered model")
    command.add_argument("--track", required=True, metavar="URI", help="MLflow's address, or env")
    command.add_argument("--alias", help="points to this version from now on: champion or challenger")
    command.add_argument("--verdict", metavar="FILE", help="what the gate said of it")
    command.add_argument("--forced", metavar="REASON", help="why it was promoted without a passed verdict")
    command.add_argument("--experiment", default=EXPERIMENT, help=f"MLflow's experiment ({EXPERIMENT})")
    given = command.parse_args(arguments)
    return answering_mistakes("register", lambda: register(given))


if __name__ == "__main__":
    sys.exit(main())
