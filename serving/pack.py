"""Release: the bundles of runs and what their snapshot knows of users and items, in one folder to serve from."""

from __future__ import annotations

import os
import re
import shutil
import sys
import uuid
from pathlib import Path

from schemas.bundle import BundleManifest
from schemas.errors import UserError
from schemas.features import FeatureTransform
from schemas.feedback import FeedbackRules
from schemas.programs import Parser, answering_mistakes
from schemas.release import ITEMS, RANKER, RELEASE, RETRIEVER, USERS, Release
from schemas.settings import parse_model, read_yaml
from schemas.snapshot import Snapshot, open_snapshot
from schemas.storage import absolute, filesystem, sha256_of
from schemas.version import code_version, now_utc
from schemas.wheel import ServingSettings, WheelSettings
from serving.item_packing import write_items
from serving.release_folder import bundle_files
from serving.snapshot_tables import borrowed_of_users, past_features, vocabularies, write_past, write_vocabulary
from serving.sources import decides, made_of_events
from serving.user_sorting import write_users
from serving.users import HISTORY, SEEN, TIMES
from training.bundle import bundle_digest, bundle_of, read_manifest
from training.recipe import Recipe

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


def pack(
    retriever: Path,
    ranker: Path | None,
    out: Path,
    *,
    release_id: str,
    serving: ServingSettings | None = None,
    feedback: FeedbackRules | None = None,
) -> Release:
    """Write the release `out` whole or not at all, and describe it."""
    if not _ID.match(release_id):
        raise UserError(f"--id {release_id!r}: letters, digits and . _ - only, at most 64.")
    if out.exists():
        raise UserError(f"{out} is there already, and a release never changes: give --out another name.")
    bundles = {RETRIEVER: bundle_of(retriever)} | ({RANKER: bundle_of(ranker)} if ranker is not None else {})
    manifests = {name: read_manifest(path) for name, path in bundles.items()}
    from_item = feedback.from_item if feedback is not None else {}
    check(manifests, from_item)
    parent = manifests[RETRIEVER].snapshot
    snapshot = open_snapshot(parent.url)
    if snapshot.manifest.digest() != parent.digest:
        raise UserError(
            f"{parent.url} is another snapshot than {retriever} was trained on: train again, or bring it back."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        for name, path in bundles.items():
            copy_bundle(path, draft / name)
        write_tables(snapshot, draft, from_item)
        release = describe(snapshot, draft, manifests[RETRIEVER], release_id, serving or ServingSettings(), feedback)
        (draft / RELEASE).write_text(release.model_dump_json(indent=1), encoding="utf-8")
        _sync(draft)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return release


def check(manifests: dict[str, BundleManifest], from_item: dict[str, str]) -> None:
    """UserError for bundles that cannot answer together."""
    kinds = {name: Recipe.model_validate(manifest.recipe).model.name for name, manifest in manifests.items()}
    if kinds[RETRIEVER] in ("dlrm", "dcn_v2", "image_classifier"):
        raise UserError(
            f"--retriever is a {kinds[RETRIEVER]}: give a run of two_tower, sasrec or matrix_factorisation."
        )
    if RANKER in kinds and kinds[RANKER] not in ("dlrm", "dcn_v2"):
        raise UserError(f"--ranker is a {kinds[RANKER]}: give a run of dlrm or dcn_v2.")
    snapshots = {name: manifest.snapshot for name, manifest in manifests.items()}
    if len({parent.digest for parent in snapshots.values()}) > 1:
        told = " and ".join(f"the {name} on {parent.url}" for name, parent in snapshots.items())
        raise UserError(
            f"the bundles were trained on different snapshots, {told}: an item_idx of one is another item in the "
            "other. Train both on one."
        )
    manifest = manifests[RETRIEVER]
    recipe = Recipe.model_validate(manifest.recipe)
    if recipe.model.name == "two_tower" and getattr(recipe.model, "user_features", False):
        of_item = [f.name for f in made_of_events(manifest.transform) if decides(f, from_item) != "request"]
        if of_item:
            raise UserError(
                f"the retriever knows users by {', '.join(of_item)}, which a candidate decides: it is not known before "
                "one is found. Train it with --set model.user_features=false."
            )


def copy_bundle(source: Path, target: Path) -> None:
    for file in bundle_files(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def write_tables(snapshot: Snapshot, draft: Path, from_item: dict[str, str]) -> None:
    if not snapshot.files("users") or not snapshot.files("items"):
        raise UserError(f"{snapshot.url} has no users or no items: only a log of both can be served from.")
    transform = snapshot.transform
    names = set(snapshot.read_schema("users").names)
    kept = [f.name for f in transform.of("users") if f.name in names] + [
        name for name in (HISTORY, SEEN, TIMES) if name in names
    ]
    num_users = write_users(snapshot, kept, draft / USERS, borrowed=borrowed_of_users(snapshot))
    num_items = write_items(snapshot, draft / ITEMS, from_item)
    print(f"release: {num_users:,} users, {num_items:,} items of {snapshot.url}", flush=True)
    for feature in past_features(transform):
        write_past(snapshot, feature, draft)
    for name in vocabularies(transform):
        write_vocabulary(snapshot, name, draft)


def describe(
    snapshot: Snapshot,
    draft: Path,
    manifest: BundleManifest,
    release_id: str,
    serving: ServingSettings,
    feedback: FeedbackRules | None,
) -> Release:
    fs, root = filesystem(str(draft))
    own = [path for path in sorted(draft.rglob("*")) if path.is_file()]
    names = [path.relative_to(draft).as_posix() for path in own]
    transform: FeatureTransform = snapshot.transform
    return Release(
        id=release_id,
        created_at=now_utc(),
        code_version=code_version(),
        contract=snapshot.manifest.contract,
        transform=transform,
        snapshot=manifest.snapshot,
        last_event_time_ms=last_event_time_ms(snapshot),
        bundles={name: bundle_digest(draft / name) for name in (RETRIEVER, RANKER) if (draft / name).exists()},
        files={
            name: sha256_of(fs, f"{root}/{name}") for name in names if name.split("/")[0] not in (RETRIEVER, RANKER)
        },
        serving=serving,
        feedback=feedback,
    )


def last_event_time_ms(snapshot: Snapshot) -> int:
    times = [s["last_event_time_ms"] for s in snapshot.manifest.statistics.values() if "last_event_time_ms" in s]
    if not times:
        raise UserError(f"{snapshot.url} does not say when its last event was: prepare it again.")
    return int(max(times))


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def settings_of(path: Path | None) -> tuple[ServingSettings, FeedbackRules | None]:
    """What a release answers with, of a wheel's settings; the defaults where there are none."""
    if path is None:
        return ServingSettings(), None
    raw, where = read_yaml(str(path), catalogue=path.parent, what="wheel")
    wheel = parse_model(WheelSettings, raw, where=where)
    return wheel.serving, wheel.feedback


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="headrace release", description=__doc__)
    command.add_argument("--retriever", required=True, help="run or bundle of the model that finds candidates")
    command.add_argument("--ranker", help="run or bundle of the model that orders them; the retriever's order without")
    command.add_argument("--id", required=True, help="the generation's name, which every impression will bear: 0001")
    command.add_argument("--out", required=True, help="folder of the release; must not be there yet")
    command.add_argument("--settings", help="wheel.yaml: how it serves, and what comes of what is shown (defaults)")
    given = command.parse_args(arguments)

    def work() -> None:
        serving, feedback = settings_of(Path(absolute(given.settings)) if given.settings else None)
        out = Path(absolute(given.out))
        release = pack(
            Path(absolute(given.retriever)),
            Path(absolute(given.ranker)) if given.ranker else None,
            out,
            release_id=given.id,
            serving=serving,
            feedback=feedback,
        )
        print(f"release: published {out}: generation {release.id}, {' and '.join(release.bundles)}")

    return answering_mistakes("release", work)


if __name__ == "__main__":
    sys.exit(main())
