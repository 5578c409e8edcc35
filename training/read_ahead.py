"""Doing work ahead of who needs it, in threads, in order, and only so far ahead."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


def read_ahead(
    read: Callable[[int], T], numbers: Sequence[int], sizes: Sequence[int], *, threads: int, max_bytes: int
) -> Generator[T, None, None]:
    """Yield `read(number)` for each number, in this order, while `threads` threads read those that come next.

    At most `max_bytes` are read and not yet taken, by the given sizes, or one item that is larger. No thread is left
    when the iterator ends, is closed or raises what `read` raised. With no threads, reading happens when asked for.
    """
    if threads == 0:
        yield from map(read, numbers)
        return
    waiting: deque[tuple[Future[T], int]] = deque()
    held = begun = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="headrace-read") as pool:
        try:
            for _ in numbers:
                while begun < len(numbers) and (not waiting or held + sizes[begun] <= max_bytes):
                    waiting.append((pool.submit(read, numbers[begun]), sizes[begun]))
                    held += sizes[begun]
                    begun += 1
                future, size = waiting.popleft()
                item = future.result()
                del future
                held -= size
                yield item
                del item  # or the one that was taken would live on while the next one is waited for
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


class in_background(Generic[T]):  # noqa: N801  (reads as a function: `for block in in_background(blocks)`)
    """An iterator that runs in a thread of its own, `depth` items ahead; close() ends the thread."""

    _END = object()

    def __init__(self, items: Iterator[T], *, depth: int):
        self._items = items
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        try:
            while (item := self._queue.get()) is not self._END:
                if isinstance(item, _Failure):
                    raise item.error
                yield item
                del item
        finally:
            self.close()

    def close(self) -> None:
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)  # it may be waiting for room
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            for item in self._items:
                self._queue.put(item)
                del item
                if self._closed.is_set():
                    break
            else:
                self._queue.put(self._END)
        except BaseException as error:
            self._queue.put(_Failure(error))
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
