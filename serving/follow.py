"""Follows champion.json: a release that is promoted is loaded beside the one in service, then takes its place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from schemas.errors import UserError
from schemas.release import Champion, read_champion
from serving.engine import Engine, load_engine
from serving.telling import complain, tell

LOOKS_EVERY_S = 1.0


def champion_of(path: Path) -> Champion:
    """UserError where nothing has been promoted, or the file is damaged."""
    found = read_champion(path)
    if found is None:
        raise UserError(f"{path} is not there: no release is in service. `headrace promote` puts one in.")
    return found


def release_of(path: Path, champion: Champion) -> Path:
    """Relative to the file's own folder where it is not absolute."""
    return path.parent / champion.release


def load_champion(path: Path, champion: Champion, load: Callable[[Path], Engine] = load_engine) -> Engine:
    """UserError where its release cannot serve, or is another than the one that was promoted."""
    engine = load(release_of(path, champion))
    if engine.release.id != champion.id:
        raise UserError(f"{path} names {champion.id}, and its folder holds {engine.release.id}.")
    return engine


def first_in_service(path: Path) -> tuple[Champion, Engine]:
    """The champion, or the newest of those before it that can serve; where none can, the champion's UserError.

    A server that is started again beside a champion which has gone bad answers with what was there before: it is the
    follower that says so from then on, and that takes the champion when it is whole.
    """
    champion: Champion | None = champion_of(path)
    reasons: list[UserError] = []
    while champion is not None:
        try:
            return champion, load_champion(path, champion)
        except UserError as error:
            reasons.append(error)
            if champion.before is not None:
                complain(f"serve: {champion.id} cannot serve, {champion.before.id} is tried: {error}")
            champion = champion.before
    raise reasons[0]


class Follower:
    """A thread that looks whether champion.json is another file than it was.

    `swap` gets each new engine when it is loaded and has answered a request; `problem` gets the reason why the
    champion is not in service, or None when it is. Both are called on this thread.
    """

    def __init__(
        self,
        path: Path,
        first: Champion,
        *,
        load: Callable[[Path], Engine] = load_engine,
        swap: Callable[[Engine], None],
        problem: Callable[[str | None], None],
    ) -> None:
        self._path, self._in_service = path, first
        self._load, self._swap, self._problem = load, swap, problem
        self._mark = self._marked()
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="follow champion", daemon=True)

    def start(self) -> None:
        # The file may have been replaced since `first` was read.
        self.look(always=True)
        self._thread.start()

    def wake(self) -> None:
        """Look now, and load the champion again where it could not be loaded."""
        self._wake.set()

    def close(self, *, patience_s: float | None = None) -> None:
        """Look no more. A release that is being loaded may take longer than `patience_s`: it comes to nothing."""
        self._over = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def look(self, *, always: bool = False) -> None:
        """Load the champion where it is another than the release in service."""
        mark = self._marked()
        if mark == self._mark and not always:
            return
        self._mark = mark
        try:
            champion = champion_of(self._path)
            if (champion.release, champion.id) != (self._in_service.release, self._in_service.id):
                engine = load_champion(self._path, champion, self._load)
                if self._over:
                    return
                self._swap(engine)
                self._in_service = champion
                tell(f"serve: generation {champion.id} is in service")
            self._problem(None)
        except Exception as error:  # whatever is wrong with a release, the one in service stays
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            complain(f"serve: {self._in_service.id} stays in service: {reason}")
            self._problem(reason)

    def _run(self) -> None:
        while not self._over:
            asked = self._wake.wait(LOOKS_EVERY_S)
            self._wake.clear()
            if not self._over:
                self.look(always=asked)

    def _marked(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
