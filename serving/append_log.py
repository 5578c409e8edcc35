"""An append-only log on the local disk, of one process: what it has acknowledged is there after a kill.

Who appends gets a future. A thread takes all lines that wait, writes them at once, waits once for the disk, and
resolves their futures: while it waits the next group gathers, so many appends cost few waits (group commit).
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from schemas.durable import make_folder
from serving.open_segment import NameTaken, OpenSegment
from serving.telling import complain

SEAL_REQUEST = "seal.request"
"""File in the folder of a log: when it is replaced, each writer seals its segment (`headrace land --seal`)."""
_LOOKS_EVERY_S = 0.2
_WRITER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

Fsync = Literal["always", "interval"]
Batch = tuple[tuple[bytes, ...], Future[None]]
"""Lines that belong together, and who waits for them."""


class LogRefused(OSError):
    """A line was not taken: too much waits for the disk, or the log is closed or has ended."""


class AppendLog:
    """Appends lines to segments in `folder`; see serving/segments.py for what they look like.

    fsync      "always": a future resolves when its line is on the disk. "interval": when the kernel has it, and the
               disk follows each `interval_s`: a killed process loses nothing, a power loss at most the interval.
    segment_*  a segment is sealed, so that it can be landed, at this size or age.
    queue_bytes  of lines may wait; the next one is refused at once.

    The folder has to be on a local disk: locks and fsync of network file systems promise less.
    """

    def __init__(
        self,
        folder: Path,
        *,
        writer: str,
        fsync: Fsync = "always",
        interval_s: float = 1.0,
        segment_bytes: int = 64 << 20,
        segment_seconds: float = 300.0,
        queue_bytes: int = 64 << 20,
    ) -> None:
        if not _WRITER.fullmatch(writer):
            raise ValueError(f"a writer's name is made of letters, digits, '.', '_' and '-', not {writer!r}")
        self.folder, self._always, self._interval_s = folder, fsync == "always", interval_s
        self._segment_bytes, self._segment_seconds, self._queue_bytes = segment_bytes, segment_seconds, queue_bytes
        began = datetime.now(UTC)
        self._session = f"{writer}-{began:%Y%m%dT%H%M%S}{began.microsecond // 1000:03d}-{secrets.token_hex(4)}"
        self._number = 0
        self._segment: OpenSegment | None = None
        self._opened_at = self._synced_at = 0.0
        self._request: tuple[int, int] | None = None
        self._waiting: list[Batch] = []
        self._waiting_bytes = 0
        self._closing = False
        self._changed = threading.Condition()
        self.appended = self.failed = 0
        """Lines acknowledged, and lines whose future got an error."""
        self.broken: str | None = None
        """Why the log takes no lines any more, though nobody closed it."""
        if not folder.is_dir():
            make_folder(folder)
            folder.chmod(0o700)  # what users did is nobody else's business
        self._thread = threading.Thread(target=self._run, name=f"log {folder.name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Lines that nobody has taken to the disk yet."""
        return _num_lines(list(self._waiting))

    def append(self, line: bytes) -> Future[None]:
        """Hand over one line (JSON, no line end in it); from any thread.

        The future resolves when the line is as safe as the policy says, or has the OSError that kept it from being.
        Raises LogRefused at once where too much waits. A future cannot be cancelled: the line may be written already.
        """
        return self.append_many([line])

    def append_many(self, lines: Sequence[bytes]) -> Future[None]:
        """Hand over lines that belong together: they are written as one, or refused as one."""
        if not lines or not all(lines) or any(b"\n" in line for line in lines):
            raise ValueError("a line of the log is not empty and holds no line end")
        future: Future[None] = Future()
        num_bytes = sum(map(len, lines))
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._closing:
                raise LogRefused(f"the log {self.folder} is closed")
            if self.broken is not None:
                raise LogRefused(self.broken)
            if self._waiting_bytes + num_bytes > self._queue_bytes:
                raise LogRefused(f"{self._waiting_bytes:,} bytes wait for the disk of {self.folder}")
            self._waiting.append((tuple(lines), future))
            self._waiting_bytes += num_bytes
            if len(self._waiting) == 1:
                self._changed.notify()
        return future

    def close(self, *, patience_s: float | None = None) -> None:
        """Write what waits, seal the segment, end the thread; where the disk hangs wait no longer than `patience_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience_s)

    def _run(self) -> None:
        group: list[Batch] = []
        over = False
        try:
            while not over:
                group, over = self._next_group()
                if group:
                    self._write(group)
                self._sync_or_seal(over)
        except BaseException as error:  # or lines would be taken that nobody writes
            self._break(f"the log {self.folder} has ended, start the server again: {error!r}", group)

    def _break(self, reason: str, group: list[Batch]) -> None:
        """Take nothing any more, and let nobody wait, neither of the group in hand nor of what came after it."""
        with self._changed:
            self.broken = reason
            left, self._waiting, self._waiting_bytes = self._waiting, [], 0
        unanswered = [batch for batch in (*group, *left) if not batch[1].done()]
        self.failed += _num_lines(unanswered)
        for _, future in unanswered:
            future.set_exception(LogRefused(reason))
        complain(reason)

    def _next_group(self) -> tuple[list[Batch], bool]:
        """All that waits, and whether nothing will come after it; empty where something else is due."""
        with self._changed:
            if not self._waiting and not self._closing:
                self._changed.wait(None if self._segment is None else min(_LOOKS_EVERY_S, self._interval_s))
            group, self._waiting, self._waiting_bytes = self._waiting, [], 0
            return group, self._closing

    def _write(self, group: list[Batch]) -> None:
        try:
            self._current().append([line for lines, _ in group for line in lines], sync=self._always)
        except Exception as error:
            self.failed += _num_lines(group)
            reason = error if isinstance(error, OSError) else OSError(f"the log {self.folder} failed: {error!r}")
            for _, future in group:
                future.set_exception(reason)
            self._drop_unusable()
            return
        self.appended += _num_lines(group)
        for _, future in group:
            future.set_result(None)

    def _sync_or_seal(self, over: bool) -> None:
        """Do with the open segment what is due: bring it to the disk, or seal it."""
        segment, now = self._segment, time.monotonic()
        if segment is None:
            return
        full = segment.bytes >= self._segment_bytes or now - self._opened_at >= self._segment_seconds
        try:
            if over or full or self._requested() != self._request:
                self._segment = None
                # A segment whose lines all failed is closed, and removed by who recovers it.
                segment.seal() if segment.records else segment.abandon()
            elif not self._always and now - self._synced_at >= self._interval_s:
                self._synced_at = now
                segment.sync()
        except Exception as error:
            self._segment = None
            segment.abandon()
            complain(f"log {segment.path}: {error}; going on in a new segment")

    def _current(self) -> OpenSegment:
        """The open segment; a new one where there is none."""
        if self._segment is None:
            # Looked at before the file is made: who asks afterwards finds the file and waits for it, and we see that
            # the request is another.
            self._request = self._requested()
            while self._segment is None:
                self._number += 1
                try:
                    self._segment = OpenSegment(self.folder, f"{self._session}-{self._number:06d}")
                except NameTaken:
                    continue
            self._opened_at = self._synced_at = time.monotonic()
        return self._segment

    def _drop_unusable(self) -> None:
        segment = self._segment
        if segment is not None and not segment.usable:
            self._segment = None
            segment.abandon()

    def _requested(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.folder / SEAL_REQUEST)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def _num_lines(batches: list[Batch]) -> int:
    return sum(len(lines) for lines, _ in batches)
