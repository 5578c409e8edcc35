"""A server as its users run it: a process of its own on a free port, over a wheel with a release in service."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from schemas.release import ITEMS, RELEASE
from tests.serving.releases import make_champion

ROOT = Path(__file__).parent.parent.parent
_STARTS_WITHIN_S = 90


@dataclass
class Running:
    url: str
    key: str
    wheel: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"X-API-Key": self.key, **headers}, timeout=20, trust_env=False)

    def said(self) -> str:
        return (self.wheel / "server.txt").read_text(encoding="utf-8", errors="replace")


@contextmanager
def running(wheel: Path, *arguments: str, program: str = "serving.server") -> Iterator[Running]:
    """Until the block ends; SIGTERM ends it, after what it does last."""
    said = wheel / "server.txt"
    command = [sys.executable, "-m", program, "--wheel", str(wheel), "--port", "0", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        url = _url(said, process)
        key = (wheel / "logs" / "local.key").read_text().strip()
        _answers(url, process)
        yield Running(url, key, wheel, process)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    assert code in (0, -signal.SIGTERM), said.read_text()


def _answers(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


def _url(said: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serve: (http://\S+:[1-9]\d*)", said.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {said.read_text()}")


def copy_of(release: Path, to: Path, release_id: str, *, titles: dict[int, str] | None = None) -> Path:
    """The same release under another id, whole; `titles` by the place of the item.

    Its models have time: on a machine that is busy with other tests popular items would be the answer.
    """
    shutil.copytree(release, to)
    if titles:
        with pa.memory_map(str(to / ITEMS)) as source:
            table = pa.ipc.open_file(source).read_all()
        old = table["title"].to_pylist()
        new = pa.array([titles.get(place, title) for place, title in enumerate(old)], table.schema.field("title").type)
        table = table.set_column(table.schema.get_field_index("title"), table.schema.field("title"), new)
        write_arrow(to / ITEMS, table)
    redescribe(to, id=release_id, serving={"timeout_ms": 10_000})
    return to


def write_arrow(path: Path, table: pa.Table) -> None:
    draft = path.with_suffix(".draft")
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    draft.replace(path)


def redescribe(release: Path, **changes: Any) -> None:
    """release.json with other values, and with the checksums of the files as they are now."""
    path = release / RELEASE
    content = json.loads(path.read_text(encoding="utf-8"))
    content["files"] = {
        name: hashlib.sha256((release / name).read_bytes()).hexdigest()
        for name in content["files"]
        if (release / name).exists()
    }
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def promote(wheel: Path, release: Path, release_id: str) -> None:
    make_champion(wheel, release, release_id)
