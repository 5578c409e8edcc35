"""A release with a pickle, a module, a link or other bytes in it is refused, and nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.release import ITEMS, RANKER, RETRIEVER, Release
from tests.serving.running_server import Running, copy_of, promote, redescribe, write_arrow
from training.bundle import bundle_digest
from training.checkpoint import WEIGHTS

pytestmark = pytest.mark.slow


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _weights_are_a_pickle(release: Path, marker: Path, model: str) -> None:
    (release / model / WEIGHTS).write_bytes(pickle.dumps(Touch(marker)))
    _describe_bundles(release)


def _a_pickle_beside_them(release: Path, marker: Path, model: str) -> None:
    (release / model / "model.pt").write_bytes(pickle.dumps(Touch(marker)))
    _describe_bundles(release)


def _a_module_beside_them(release: Path, marker: Path) -> None:
    (release / "sitecustomize.py").write_text(f"open({str(marker)!r}, 'w')")
    redescribe(release, id="poisoned")


def _a_link_out_of_the_folder(release: Path, marker: Path) -> None:
    outside = release.parent / "outside.arrow"
    shutil.move(release / ITEMS, outside)
    (release / ITEMS).symlink_to(outside)
    redescribe(release, id="poisoned")


def _a_path_out_of_the_folder(release: Path, marker: Path) -> None:
    shutil.move(release / ITEMS, release.parent / "outside.arrow")
    content = json.loads((release / "release.json").read_text())
    digest = content["files"].pop(ITEMS)
    redescribe(release, id="poisoned", files={**content["files"], "../outside.arrow": digest})


def _items_of_other_columns(release: Path, marker: Path) -> None:
    write_arrow(release / ITEMS, pa.table({"item_id": [1, 2], "title": [b"\xff", b""]}))
    redescribe(release, id="poisoned")


def _items_that_are_no_arrow(release: Path, marker: Path) -> None:
    (release / ITEMS).write_bytes(pickle.dumps(Touch(marker)))
    redescribe(release, id="poisoned")


def _bytes_that_changed(release: Path, marker: Path, model: str) -> None:
    weights = release / model / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def _describe_bundles(release: Path) -> None:
    content: dict[str, Any] = json.loads((release / "release.json").read_text())
    bundles = {name: bundle_digest(release / name) for name in content["bundles"]}
    redescribe(release, id="poisoned", bundles=bundles)


OF_A_MODEL = {
    _weights_are_a_pickle: "SafetensorError",
    _a_pickle_beside_them: "{model}/model.pt is no part of a release",
    _bytes_that_changed: "the bundle {model} was changed since the release was made",
}
"""And what the server says of each."""

POISONS = {
    _a_module_beside_them: "sitecustomize.py is no part of a release",
    _a_link_out_of_the_folder: "items.arrow is no part of a release",
    _a_path_out_of_the_folder: "'../outside.arrow' leads out of the release",
    _items_of_other_columns: "does not exist in schema",
    _items_that_are_no_arrow: "Not an Arrow file",
} | {
    partial(poison, model=model): said.format(model=model)
    for poison, said in OF_A_MODEL.items()
    for model in (RETRIEVER, RANKER)
}


def _name(poison: Callable[..., None]) -> str:
    if isinstance(poison, partial):
        return f"{poison.keywords['model']}: {_name(poison.func)}"
    return poison.__name__.strip("_").replace("_", " ")


@pytest.mark.parametrize("poison", POISONS, ids=_name)
def test_a_poisoned_release_is_refused_runs_nothing_and_leaves_the_champion_in_service(
    poison: Callable[[Path, Path], None], server: Running, released: tuple[Path, Release], tmp_path: Path
) -> None:
    marker, release = tmp_path / "it-ran", copy_of(released[0], tmp_path / "release", "poisoned")
    poison(release, marker)
    with server.client() as client:
        before = client.get("/healthz").json()["generation"]
        promote(server.wheel, release, "poisoned")
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 15
        while str(tmp_path) not in str(client.get("/healthz").json()["problem"]) and time.monotonic() < end:
            time.sleep(0.05)
        health = client.get("/healthz").json()
        assert str(tmp_path) in health["problem"]
        assert POISONS[poison] in health["problem"]
        assert health["status"] == "degraded"
        assert health["generation"] == before
        assert client.get("/healthz", headers={"X-API-Key": ""}).json()["problem"] == "told to who has a key"
        answer = client.post("/recommend", json={"user_id": "u1"}).json()
        assert (answer["generation"], answer["fallback"]) == (before, None)
    assert not marker.exists()
    assert "Traceback" not in server.said()
