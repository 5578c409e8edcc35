"""Serve: the release in service behind HTTP, what it shows and what is done with it in logs, the champion followed."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from schemas.errors import UserError
from schemas.programs import Parser, answering_mistakes
from schemas.release import Champion, Release
from schemas.served import KINDS, Kind
from schemas.storage import absolute
from schemas.wheel import CHAMPION
from serving.app import build_app
from serving.append_log import AppendLog, Fsync
from serving.connection import BoundedConnection
from serving.engine import Engine, load_engine
from serving.follow import Follower, first_in_service
from serving.front import stand_before
from serving.keys import keys_for, make_key
from serving.limits import Limits
from serving.log_follow import LogFollower, tell_new
from serving.pages import PageSource, add_pages
from serving.recent import Recent
from serving.service import InService, Service
from serving.ties import tie_of
from serving.workers import ANSWERS_WITHIN_S, Workers, end_with_parent

LOGS = "logs"
_SWAPS_WITHIN_S = 30.0
_ENDS_WITHIN_S = 5.0
"""That the end of a server waits for each thing at most."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; `wheel` or `release` and `logs`."""

    wheel: Path | None = None
    release: Path | None = None
    logs: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    fsync: Fsync = "always"
    keys: Path | None = None
    limits: Limits = field(default_factory=Limits)
    worker: int = 0
    """Number of this process among several, from 1 on; 0 for one alone."""

    @property
    def champion(self) -> Path | None:
        return self.wheel / CHAMPION if self.wheel is not None else None

    @property
    def log_folder(self) -> Path:
        if self.logs is not None:
            return self.logs
        assert self.wheel is not None
        return self.wheel / LOGS


class Server:
    """One process: a service, its logs, who follows the champion, and the app over them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        keys, local_key = keys_for(options.host, options.keys, logs=options.log_folder)
        first: Champion | None = None
        if options.wheel is not None:
            assert options.champion is not None
            first, engine = first_in_service(options.champion)
        else:
            assert options.release is not None
            engine = load_engine(options.release)
        self._recent = recent_of(engine.release)
        self._covered_from_ms = engine.release.last_event_time_ms
        self.logs: dict[Kind, AppendLog] = {
            kind: AppendLog(options.log_folder / kind, writer=f"serve{options.worker}", fsync=options.fsync)
            for kind in KINDS
        }
        readers = self._recent.readers(options.log_folder, self._covered_from_ms)
        read = tell_new(readers)
        print(f"serve: generation {engine.release.id}, {read:,} records of logs read since its last event", flush=True)
        self.service = Service(InService.of(engine), self.logs, self._recent)
        self._others: LogFollower | None = None
        if options.worker:
            self._others = LogFollower(readers)
            self.service.problems.append(lambda: self._others.problem if self._others is not None else None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.follower: Follower | None = None
        if options.champion is not None and first is not None:
            self.follower = Follower(options.champion, first, swap=self._swap_from_thread, problem=self._note_problem)
        pages = PageSource(service=self.service, logs=options.log_folder, wheel=options.wheel)
        self.app = build_app(
            self.service,
            lifespan=self._lifespan,
            pages=lambda app, service: add_pages(app, pages),
            guard=lambda app: stand_before(app, keys, options.limits, self.service.metrics),
        )
        if local_key is not None:
            print(f"serve: the key that this machine's own programs ask with is in {local_key}", flush=True)

    def close(self) -> None:
        """The logs first: what comes after them may take long, and whoever waits may send SIGKILL."""
        for log in self.logs.values():
            log.close(patience_s=_ENDS_WITHIN_S)
        self.service.scorer.close()
        if self._others is not None:
            self._others.close(patience_s=_ENDS_WITHIN_S)
        if self.follower is not None:
            self.follower.close(patience_s=_ENDS_WITHIN_S)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        if self.follower is not None:
            await asyncio.to_thread(self.follower.start)
            self._loop.add_signal_handler(signal.SIGHUP, self.follower.wake)
        if self._others is not None:
            self._others.start()
        ready = asyncio.create_task(self.service.keep_ready())
        yield
        ready.cancel()
        await asyncio.to_thread(self.close)

    def _swap_from_thread(self, engine: Engine) -> None:
        """Called when an engine is loaded and warm: what is left to do takes no time."""
        release, before = engine.release, self.service.in_service.engine.release
        knows_less = release.last_event_time_ms < self._covered_from_ms
        self._covered_from_ms = min(release.last_event_time_ms, self._covered_from_ms)
        other_rules = (release.feedback, release.contract) != (before.feedback, before.contract)
        if other_rules:
            self._recent = recent_of(release)
        if other_rules or knows_less:
            self._recent.refill(self.options.log_folder, self._covered_from_ms)
        in_service, recent, swapped = InService.of(engine), self._recent, threading.Event()

        def swap() -> None:
            self.service.swap(in_service, recent)
            swapped.set()

        self._on_loop(swap)
        if other_rules and swapped.wait(_SWAPS_WITHIN_S):
            self._catch_up()

    def _catch_up(self) -> None:
        """What was logged between the reading of the logs and the swap was told to the old release's events alone."""
        if self._others is None:
            self._recent.refill(self.options.log_folder, self._covered_from_ms)
            return
        self._others.close()
        self._others = LogFollower(self._recent.readers(self.options.log_folder, self._covered_from_ms))
        self._others.start()

    def _note_problem(self, reason: str | None) -> None:
        self._on_loop(lambda: self.service.note_problem(reason))

    def _on_loop(self, do: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(do)


def recent_of(release: Release) -> Recent:
    """No events yet, by the rules of this release."""
    return Recent(release.feedback, tie_of(release.contract))


def check(options: Options) -> Options:
    """UserError for options that do not go together."""
    if (options.wheel is None) == (options.release is None):
        raise UserError("give --wheel, or --release and --logs.")
    if options.release is not None and options.logs is None:
        raise UserError("with --release say where the logs go: --logs DIR.")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: at least one process has to serve.")
    if not options.limits.requests_per_s > 0:
        raise UserError(f"--requests-per-second {options.limits.requests_per_s:g}: it has to be more than 0.")
    return options


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are answered first, within ANSWERS_WITHIN_S."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a champion to look at again
    torch.set_num_threads(1)
    if options.worker:
        end_with_parent()
    listener = bind(options.host, options.port, shared=options.worker > 0)
    server = Server(options)
    config = uvicorn.Config(
        server.app, loop="uvloop", http=BoundedConnection, ws="none", access_log=False, log_level="warning",
        server_header=False, limit_concurrency=options.limits.connections, timeout_graceful_shutdown=ANSWERS_WITHIN_S,
    )  # fmt: skip
    host, port = listener.getsockname()[:2]
    print(f"serve: http://{host}:{port}", flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn has ended in order, and says so by the signal
        uvicorn.Server(config).run(sockets=[listener])


def serve_together(options: Options, arguments: list[str]) -> None:
    """Serve by `options.workers` processes, each started with these arguments, a number, and the port."""
    keys_for(options.host, options.keys, logs=options.log_folder)  # or all of them would make the local key
    # Bound, but not listening: it keeps the port for the processes, and is sent no connections.
    held = bind(options.host, options.port, shared=True)
    port = held.getsockname()[1]
    program = [sys.executable, "-m", "serving.server", *arguments, "--port", str(port)]
    try:
        Workers([[*program, "--worker", str(number)] for number in range(1, options.workers + 1)]).run()
    finally:
        held.close()


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket on this address, which other processes of ours may listen on too where it is `shared`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}. Give another --host or --port.") from None
    listener.set_inheritable(True)
    return listener


def _make_key(name: str, file: Path | None) -> None:
    if file is None:
        raise UserError("--make-key needs --keys FILE, the file that the key is added to.")
    print(make_key(name, file))
    print(f"serve: {file} holds its hash; the key itself is shown this once.", file=sys.stderr)


def parser() -> Parser:
    command = Parser(prog="headrace serve", description=__doc__)
    command.add_argument("--wheel", help="folder of a wheel: its logs, and its champion, which is followed")
    command.add_argument("--release", help="folder of one release, which is not followed")
    command.add_argument("--logs", help="where impressions and actions are written (with --wheel: WHEEL/logs)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=int, default=8000, help="port to listen on (8000); 0 for any that is free")
    command.add_argument("--workers", type=int, default=1, help="processes that share the port (1)")
    command.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    command.add_argument(
        "--keys", help="file of API keys, which --host needs where others may reach it (a key beside the logs)"
    )
    command.add_argument("--make-key", metavar="NAME", help="add a key to --keys, print it this once, and end")
    command.add_argument(
        "--requests-per-second",
        type=float,
        default=Limits.requests_per_s,
        help=f"that one key may make, and twice as many at once after a rest ({Limits.requests_per_s:g})",
    )
    command.add_argument(
        "--fsync",
        choices=("always", "interval"),
        default="always",
        help="answer when what is logged is on the disk, or when the kernel has it (always)",
    )
    return command


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)

    def path(text: str | None) -> Path | None:
        return Path(absolute(text)) if text else None

    if given.make_key is not None:
        return answering_mistakes("serve", lambda: _make_key(given.make_key, path(given.keys)))
    limits = Limits(requests_per_s=given.requests_per_second, burst=max(1.0, 2 * given.requests_per_second))
    options = Options(
        wheel=path(given.wheel), release=path(given.release), logs=path(given.logs), host=given.host, port=given.port,
        workers=given.workers, worker=given.worker, fsync=given.fsync, keys=path(given.keys), limits=limits,
    )  # fmt: skip
    if options.workers > 1 and not options.worker:
        own = list(sys.argv[1:] if arguments is None else arguments)
        return answering_mistakes("serve", lambda: serve_together(check(options), own))
    return answering_mistakes("serve", lambda: serve(check(options)))


if __name__ == "__main__":
    sys.exit(main())
