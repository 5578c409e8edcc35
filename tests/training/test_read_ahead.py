"""Reading ahead: in order, within a bound, nothing kept alive that was taken, no thread left."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.test_feed import threads_of_feeds
from training.read_ahead import in_background, read_ahead


@given(
    st.lists(st.integers(0, 100), max_size=30), st.sampled_from([0, 1, 2, 5]), st.integers(0, 250), st.integers(0, 30)
)
@settings(max_examples=60, deadline=None)
def test_read_ahead_gives_items_in_order_and_holds_no_more_than_its_bound(sizes, threads, max_bytes, slow_at):
    lock, begun, taken = threading.Lock(), [], 0
    most = 0

    def read(number: int) -> int:
        nonlocal most
        with lock:
            begun.append(number)
            most = max(most, sum(sizes[number] for number in begun[taken:]))
        time.sleep(0.0002)
        return number

    numbers = range(len(sizes))
    got = []
    for number in read_ahead(read, numbers, sizes, threads=threads, max_bytes=max_bytes):
        with lock:
            taken += 1
        got.append(number)
        if number == slow_at:
            time.sleep(0.01)  # time enough to read far too much
    assert got == list(numbers)
    assert sorted(begun) == got
    assert most <= max([max_bytes, *sizes])
    assert threads_of_feeds() == []


def test_as_many_items_as_there_are_threads_are_read_at_the_same_time_all_along():
    meeting = threading.Barrier(3, timeout=5)

    def read(number: int) -> int:
        meeting.wait()  # broken, which is an error, unless two others are read too
        return number

    assert list(read_ahead(read, range(9), [1] * 9, threads=3, max_bytes=3)) == list(range(9))


def test_closing_waits_for_the_reads_that_run_and_begins_no_other():
    begun = []

    def read(number: int) -> int:
        begun.append(number)
        time.sleep(0.2 if number else 0)
        return number

    items = read_ahead(read, range(9), [1] * 9, threads=2, max_bytes=9)
    assert next(items) == 0
    items.close()
    assert threads_of_feeds() == []
    assert len(begun) < 9


class Item:
    """Something that a weak reference may follow."""


def wait_until_gone(item: weakref.ref) -> bool:
    until = time.monotonic() + 5
    while item() is not None and time.monotonic() < until:
        time.sleep(0.001)
    return item() is None


def test_an_item_that_was_taken_is_not_kept_alive_while_the_next_one_is_read():
    taken: list[weakref.ref] = []
    gone: list[bool] = []

    def read(number: int) -> Item:
        gone.extend(map(wait_until_gone, taken))
        return Item()

    for item in read_ahead(read, range(3), [1] * 3, threads=1, max_bytes=1):
        taken.append(weakref.ref(item))
        del item
    assert gone == [True] * 3  # before item 1 item 0, before item 2 both


def test_a_block_that_was_taken_is_not_kept_alive_while_the_next_one_is_gathered():
    taken: list[weakref.ref] = []
    gone: list[bool] = []
    is_taken = threading.Event()

    def blocks() -> Iterator[Item]:
        yield Item()
        assert is_taken.wait(5)
        gone.extend(map(wait_until_gone, taken))
        yield Item()

    for item in in_background(blocks(), depth=1):
        taken.append(weakref.ref(item))
        del item
        is_taken.set()
    assert gone == [True]
