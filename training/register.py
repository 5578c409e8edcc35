"""Register a run's bundle in MLflow's model registry, file by file as it is: nothing in it is pickled."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from schemas.bundle import BUNDLE
from schemas.errors import UserError
from schemas.programs import Parser, answering_mistakes
from schemas.storage import absolute
from training.run_folder import RunFolder
from training.tracking import Mirror, tracked_by, tracking_options, uri_of

_NAME, _ALIAS = re.compile(r"[\w\-. ]+"), re.compile(r"(?!v\d+$|latest$)[A-Za-z_][\w\-]*")


def register(given: argparse.Namespace) -> None:
    """Make the bundle a version of the model, unless it is one, and point the alias at it."""
    folder = RunFolder(Path(absolute(given.run)))
    if not folder.is_complete():
        raise UserError(f"{folder.path} has no bundle: has `headrace train` come to its end?")
    check_names(given.model, given.alias)
    uri = uri_of(given.track) if given.track else tracked_by(folder).get("uri")
    if uri is None:
        raise UserError(f"{folder.path} was not tracked: say with --track where the registry is.")
    manifest = json.loads((folder.bundle / BUNDLE).read_text(encoding="utf-8"))
    mirror = Mirror(uri, given.experiment, folder, manifest["world_size"])
    try:
        mirror.end("FINISHED")
        version, is_new = mirror.register(model=given.model, alias=given.alias)
    except Exception as error:
        why = str(error).strip().splitlines()
        raise UserError(f"cannot register in MLflow at {uri}: {why[0] if why else type(error).__name__}") from None
    named = f", which is its {given.alias}" if given.alias else ""
    print(f"register: {folder.bundle} {'is' if is_new else 'was'} version {version} of {given.model}{named}")


def check_names(model: str, alias: str | None) -> None:
    """UserError for names that MLflow refuses."""
    if not _NAME.fullmatch(model):
        raise UserError(f"--model {model!r}: a model's name is of letters, digits, spaces and _ - . alone.")
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise UserError(f"--alias {alias!r}: an alias begins with a letter and is no version, such as champion.")


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace register", description=__doc__)
    command.add_argument("--run", required=True, help="folder of a run that `headrace train` has finished")
    command.add_argument("--model", required=True, help="name of the registered model")
    command.add_argument("--alias", help="points to this version from now on, for example champion")
    tracking_options(command)
    given = command.parse_args(arguments)
    return answering_mistakes("register", lambda: register(given))


if __name__ == "__main__":
    sys.exit(main())
