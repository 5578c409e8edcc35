"""Reading a release: only what it is to hold, all of it whole, before a byte of it is used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from schemas.bundle import BUNDLE
from schemas.errors import UserError
from schemas.release import RANKER, RELEASE, RETRIEVER, Release
from schemas.storage import filesystem, sha256_of
from training.bundle import ITEMS as BUNDLE_ITEMS
from training.bundle import bundle_digest
from training.checkpoint import WEIGHTS


def bundle_files(bundle: Path) -> list[Path]:
    """All files that belong to a bundle, and may be read; what else lies in its folder is none of it."""
    named = [bundle / name for name in (BUNDLE, WEIGHTS, BUNDLE_ITEMS)]
    tables = sorted(bundle.glob("embeddings-*-of-*.safetensors"))
    return [path for path in (*named, *tables, *sorted((bundle / "vocab").glob("*.parquet"))) if path.is_file()]


def verify_release(folder: Path, release: Release) -> None:
    """Raise UserError for a file that is missing, changed, or not expected: nothing of such a release is loaded."""
    if not {RETRIEVER} <= set(release.bundles) <= {RETRIEVER, RANKER}:
        raise UserError(f"{folder}: bundles {sorted(release.bundles)}: a release has a retriever, and maybe a ranker.")
    for name in release.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{folder}: {name!r} leads out of the release: nothing of it is read.")
    expected = {folder / RELEASE, *(folder / name for name in release.files)}
    for name in release.bundles:
        expected.update(bundle_files(folder / name))
    _refuse_others(folder, expected)
    fs, root = filesystem(str(folder))
    for name, digest in release.files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing: make the release again.")
        if sha256_of(fs, f"{root}/{name}") != digest:
            raise UserError(f"{folder}: {name} was changed since the release was made: make it again.")
    for name, digest in release.bundles.items():
        if not (folder / name / BUNDLE).is_file():
            raise UserError(f"{folder}: the bundle {name} is missing: make the release again.")
        if bundle_digest(folder / name) != digest:
            raise UserError(f"{folder}: the bundle {name} was changed since the release was made: make it again.")


def _refuse_others(folder: Path, expected: Iterable[Path]) -> None:
    known = set(expected)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or (not path.is_dir() and path not in known):
            raise UserError(f"{folder}: {path.relative_to(folder)} is no part of a release: take it away.")
