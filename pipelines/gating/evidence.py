"""What the gate looks at: the reports of a candidate's generation, each read when a check asks for it.

snapshot/manifest.json                its parent names the event store
drift/drift.json  skew/skew.json  off_policy.json
retriever/evaluation-test.json        the candidate on its own test split, and the same of ranker/
champion-retriever.json               the champion's model on that split, and the same of the ranker
release/release.json                  what would be promoted
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from schemas.bundle import BUNDLE, BundleManifest, RunEvaluation
from schemas.gate import GateRules
from schemas.manifest import MANIFEST, Manifest
from schemas.release import RANKER, RELEASE, RETRIEVER, Release
from schemas.snapshot import open_snapshot

M = TypeVar("M", bound=BaseModel)
PARTS = (RETRIEVER, RANKER)


class NoEvidence(Exception):
    """A report is missing or cannot be read; the text says which, and what makes it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found, in sentences with figures; of a failed one what to do, too."""

    passed: bool
    reasons: tuple[str, ...]
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A candidate's generation and the champion's; without a champion the candidate is the first."""

    candidate: Path
    champion: Path | None
    rules: GateRules

    @property
    def is_first(self) -> bool:
        return self.champion is None

    def manifest(self) -> Manifest:
        return self.report(Manifest, f"snapshot/{MANIFEST}", made_by="headrace prepare")

    def events(self) -> tuple[Manifest, str]:
        """The manifest of the event store that the snapshot was made from, and where it lies."""
        snapshot = self.manifest()
        if not snapshot.parents:
            raise NoEvidence("The snapshot's manifest names no event store: make it with `headrace prepare`.")
        parent = snapshot.parents[0]
        try:
            found = open_snapshot(parent.url, kind="events").manifest
        except Exception as error:
            raise NoEvidence(f"The event store of the snapshot cannot be read: {error}") from None
        if found.digest() != parent.digest:
            raise NoEvidence(
                f"{parent.url} is no longer what the snapshot was made from: run `headrace prepare` again, or judge "
                "before events are taken in anew."
            )
        return found, parent.url

    def release(self) -> Release:
        return self.report(Release, f"release/{RELEASE}", made_by="headrace release")

    def parts(self) -> tuple[str, ...]:
        """`retriever`, and `ranker` where the candidate has one."""
        return tuple(part for part in PARTS if part in self.release().bundles)

    def release_of_champion(self) -> Release:
        assert self.champion is not None, "asked for only where there is one"
        return read(Release, self.champion / "release" / RELEASE, made_by="headrace release")

    def parts_of_champion(self) -> tuple[str, ...]:
        return tuple(part for part in PARTS if part in self.release_of_champion().bundles)

    def evaluation(self, part: str) -> RunEvaluation:
        """The candidate's model on its own test split. NoEvidence where it was another one."""
        name, by = f"{part}/evaluation-test.json", "headrace evaluate --split test"
        found = self.report(RunEvaluation, name, made_by=by)
        _check_model(name, found, self.release().bundles.get(part), of="the candidate's release", made_by=by)
        return found

    def evaluation_of_champion(self, part: str) -> RunEvaluation:
        """The champion's model on the candidate's test split. NoEvidence where it was judged on other rows."""
        by = "headrace evaluate --run CHAMPION --snapshot CANDIDATE --out FILE"
        found = self.report(RunEvaluation, f"champion-{part}.json", made_by=by)
        digest = self.release_of_champion().bundles.get(part)
        _check_model(f"champion-{part}.json", found, digest, of="the champion's release", made_by=by)
        mine = self.evaluation(part)
        if (found.model.num_rows, found.model.row_id_sum) != (mine.model.num_rows, mine.model.row_id_sum):
            raise NoEvidence(
                f"champion-{part}.json is of {found.model.num_rows:,} rows, the candidate's evaluation of "
                f"{mine.model.num_rows:,}, or of others: judge both on the candidate's snapshot, with `{by}`."
            )
        return found

    def chosen_by(self, part: str) -> str:
        """The metric that the recipe of the candidate's run is chosen by."""
        bundle = self.report(BundleManifest, f"{part}/bundle/{BUNDLE}", made_by="headrace train")
        return str(bundle.recipe["chosen_by"])

    def report(self, model: type[M], name: str, *, made_by: str) -> M:
        return read(model, self.candidate / name, made_by=made_by)


def _check_model(name: str, found: RunEvaluation, digest: str | None, *, of: str, made_by: str) -> None:
    """NoEvidence unless the bundle that was judged is the one with this digest."""
    if found.bundle != digest:
        was = "does not say which model was judged" if found.bundle is None else "is of another model"
        raise NoEvidence(f"{name} {was}, not of the one in {of}: make it again with `{made_by}`.")


def read(model: type[M], path: Path, *, made_by: str) -> M:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoEvidence(f"{path} is missing: `{made_by}` makes it.") from None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        why = str(error).strip().splitlines()[0]
        raise NoEvidence(f"{path} cannot be read ({why}): make it again with `{made_by}`.") from None
