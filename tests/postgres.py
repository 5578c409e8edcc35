"""A real PostgreSQL server of our own for tests: on a free port of this machine, with a password, gone at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_HOST, _USER = "127.0.0.1", "reader"
JDBC_JAR = Path("/usr/share/java/postgresql.jar")


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """Where the server is; `password` lets `user` into the database `postgres`."""

    port: int
    user: str
    password: str
    control: tuple[str | Path, ...]
    """Its pg_ctl with the data folder, as the user it runs as."""
    sockets: Path

    @property
    def jdbc_url(self) -> str:
        return f"jdbc:postgresql://{_HOST}:{self.port}/postgres"

    def store(self, database: str) -> str:
        """The address of a new database, as stores of searches and tracked runs take it: without the password."""
        self.run(f"CREATE DATABASE {database}")
        return f"postgresql+psycopg2://{self.user}@{_HOST}:{self.port}/{database}"

    def stop(self) -> None:
        """End it as a crash would, without a last word to its clients."""
        subprocess.run([*self.control, "stop", "-m", "immediate"], check=True, capture_output=True, cwd=self.sockets)

    def start(self) -> None:
        """Start it again, with the data that it had."""
        options = f"-h {_HOST} -p {self.port} -k {self.sockets} -F"
        start = ["start", "-w", "-l", "/dev/null", "-o", options]
        subprocess.run([*self.control, *start], check=True, stdout=subprocess.DEVNULL, cwd=self.sockets)

    def run(self, sql: str) -> None:
        command = [
            "psql",
            "-h",
            _HOST,
            "-p",
            str(self.port),
            "-U",
            self.user,
            "-d",
            "postgres",
            "-qv",
            "ON_ERROR_STOP=1",
        ]
        subprocess.run([*command, "-c", sql], env={**os.environ, "PGPASSWORD": self.password}, check=True)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server with an empty store; at the end it and its data are gone."""
    programs = max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")), default=None)
    if programs is None:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    with socket.create_server((_HOST, 0)) as holder:
        port = holder.getsockname()[1]
    # PostgreSQL refuses to run as root; Debian's package brings a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    control = (*as_user, programs / "pg_ctl", "-D", folder / "data")
    server = Postgres(port=port, user=_USER, password=secrets.token_hex(12), control=control, sockets=folder)
    (folder / "password").write_text(server.password)
    if as_user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    data = ["-D", str(folder / "data")]
    try:
        login = ["-U", _USER, "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
        subprocess.run([*as_user, programs / "initdb", *data, *login], check=True, capture_output=True, cwd=folder)
        options = ["-h", _HOST, "-p", str(port), "-k", str(folder), "-F"]
        process = subprocess.Popen(
            [*as_user, programs / "postgres", *data, *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_ready(programs, port, process)
            yield server
        finally:
            subprocess.run([*control, "stop", "-m", "immediate"], check=False, cwd=folder)
            process.wait(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(programs: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while subprocess.run([programs / "pg_isready", "-q", "-h", _HOST, "-p", str(port)], check=False).returncode:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the PostgreSQL server for tests did not start")
        time.sleep(0.1)
