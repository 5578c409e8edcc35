"""Put a release into service, or roll back to the one before: champion.json is replaced in one step.

A release needs a verdict of the gate that is its own, passed, and against what is in service; --force with a reason
stands in for it, and is kept. Every promotion and rollback is a line of promotions.jsonl beside champion.json. With
--track a release becomes a version of a model in MLflow's registry, whose alias `champion` points to what serves.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from pipelines import registry
from schemas.durable import append_line, write_text
from schemas.errors import UserError
from schemas.gate import GateVerdict
from schemas.programs import Parser, answering_mistakes
from schemas.release import Champion, Release, read_champion, read_release
from schemas.settings import Strict
from schemas.storage import absolute

JOURNAL = "promotions.jsonl"
_LONGEST_CHAIN = 10


class Promotion(Strict):
    """A line of promotions.jsonl."""

    at: str
    action: str
    """promote or rollback."""
    id: str
    release: str
    before: str | None
    """Id of what was in service until then."""
    verdict: str | None = None
    forced: str | None = None
    """The reason given where there was no passed verdict."""


def promote(release_folder: Path, to: Path, *, verdict: Path | None, force: str | None) -> Champion:
    """Put the release into service; UserError where it may not. One that is in service already stays as it is."""
    if force is not None and not force.strip():
        raise UserError("--force wants the reason: it is kept in promotions.jsonl.")
    with _alone(to):
        release, current = read_release(release_folder), read_champion(to)
        if current is not None and (current.id, folder_of(current, to)) == (release.id, release_folder):
            return current
        if force is None:
            _check_verdict(release, release_folder, verdict, current)
        champion = Champion(
            release=_written(release_folder, to),
            id=release.id,
            promoted_at=_now(),
            verdict=str(verdict) if verdict is not None else None,
            before=cut(current, _LONGEST_CHAIN),
        )
        _put(champion, to, "promote", current, force)
    return champion


def rollback(to: Path) -> tuple[Champion, Champion]:
    """Put what was before into service; give what is and what was. UserError where nothing was, or it is gone."""
    with _alone(to):
        current = read_champion(to)
        if current is None:
            raise UserError(f"{to} does not exist: nothing is in service that could be rolled back.")
        if current.before is None:
            raise UserError(f"{to}: {current.id} is the first that was in service: there is none to roll back to.")
        champion = current.before.model_copy(update={"promoted_at": _now()})
        found = read_release(folder_of(champion, to))
        if found.id != champion.id:
            raise UserError(
                f"{folder_of(champion, to)} is release {found.id} now, not {champion.id}: promote one by name."
            )
        _put(champion, to, "rollback", current, None)
    return champion, current


def folder_of(champion: Champion, to: Path) -> Path:
    """Where its release lies: a relative one counts from the file's own folder."""
    return Path(os.path.normpath(to.parent / champion.release))


def cut(champion: Champion | None, length: int) -> Champion | None:
    """The champion with as many before it, itself counted."""
    if champion is None or length == 0:
        return None
    return champion.model_copy(update={"before": cut(champion.before, length - 1)})


def _check_verdict(release: Release, folder: Path, verdict: Path | None, current: Champion | None) -> None:
    """UserError unless the verdict is passed, of this very release, and against what is in service now."""
    otherwise = "or give --force with the reason"
    if verdict is None:
        raise UserError(f"{release.id} has no verdict: give --verdict with what `headrace gate` wrote, {otherwise}.")
    try:
        found = GateVerdict.model_validate_json(verdict.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{verdict} does not exist: run `headrace gate`, {otherwise}.") from None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{verdict} is no verdict that can be read: {str(error).splitlines()[0]}.") from None
    if found.candidate_id != release.id or Path(found.candidate).resolve() != folder.resolve():
        raise UserError(f"{verdict} is of {found.candidate_id} in {found.candidate}, not of {release.id} in {folder}.")
    if found.candidate_digest != release.digest():
        raise UserError(f"{release.id} was made again since {verdict}: run `headrace gate` on it, {otherwise}.")
    if found.champion_id != (current.id if current is not None else None):
        against, now = found.champion_id or "no champion", current.id if current is not None else "no release"
        raise UserError(
            f"{verdict} is against {against}, and {now} is in service: hold {release.id} against that, {otherwise}."
        )
    if not found.passed:
        failed = ", ".join(check.check for check in found.checks if check.verdict == "failed")
        raise UserError(f"the gate has refused {release.id} for {failed} ({verdict}): mend that, {otherwise}.")


def _put(champion: Champion, to: Path, action: str, current: Champion | None, force: str | None) -> None:
    """Journal first: a line without its change says what was meant, a change without a line would say nothing."""
    line = Promotion(
        at=champion.promoted_at,
        action=action,
        id=champion.id,
        release=champion.release,
        before=current.id if current is not None else None,
        verdict=champion.verdict,
        forced=force,
    )
    try:
        append_line(to.with_name(JOURNAL), line.model_dump_json())
        write_text(to, champion.model_dump_json(indent=1))
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror}.") from None


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """One promotion at a time: two would each take what the other replaces for what was before."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.with_name(f".{to.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(f"{to.parent} cannot be written: {error.strerror}.") from None


def _written(folder: Path, to: Path) -> str:
    """As champion.json names it: relative where it lies below the file's folder, so that a wheel can be moved."""
    return str(folder.relative_to(to.parent)) if folder.is_relative_to(to.parent) else str(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--release", metavar="DIR", help="release to put into service")
    what.add_argument("--rollback", action="store_true", help="put what was in service before back; twice goes further")
    command.add_argument("--to", required=True, metavar="FILE", help="champion.json, which servers follow")
    command.add_argument("--verdict", metavar="FILE", help="verdict of `headrace gate` on this release")
    command.add_argument("--force", metavar="REASON", help="promote without a passed verdict; the reason is kept")
    registry.add_options(command, "the release as champion")
    given = command.parse_args(arguments)
    if given.rollback and (given.verdict or given.force):
        command.error("--rollback needs neither --verdict nor --force: what it goes back to was let in once")
    registry.check_options(command, given)
    done: list[Champion] = []
    to = Path(absolute(given.to))

    def work() -> None:
        if given.rollback:
            champion, was = rollback(to)
            print(f"promote: rolled back from {was.id} to {champion.id}; {to}", flush=True)
        else:
            verdict = Path(absolute(given.verdict)) if given.verdict else None
            folder = Path(os.path.normpath(absolute(given.release)))
            champion = promote(folder, to, verdict=verdict, force=given.force)
            print(f"promote: {champion.id} is in service; {to}", flush=True)
        done.append(champion)

    code = answering_mistakes("promote", work)
    if code == 0 and given.track is not None:
        folder, verdict = folder_of(done[0], to), done[0].verdict
        code = registry.register(folder, given, alias="champion", verdict=verdict, force=given.force)
    return code


def journal(to: Path) -> list[Promotion]:
    """What was promoted and rolled back, the oldest first; a line that a kill cut short is left out."""
    path, found = to.with_name(JOURNAL), []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(Promotion.model_validate(json.loads(line)))
        except ValueError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
