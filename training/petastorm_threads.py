"""Repairs races in petastorm 0.13.1's pools which lose, repeat or reorder row groups without an error.

Lost: a pool's `get_results` asks first "is all that was handed out done?" and then "has all been handed out?".
What is handed out between the two questions is lost and the reading ends early, most often with few row groups.
Asked in the other order nothing slips between, since what was handed out stays counted.

Reordered: threads get row groups in turn and are read in turn, so that a seed gives one order. But a thread whose
turn has come and which has not yet been handed its row group counts as done and is passed over. It is not done
while more is to come.

Repeated: `ConcurrentVentilator.reset` starts a thread for the next pass, while the last pass's thread may not yet
have noticed that it is over and would go on beside the new one. It is made to wait.

Besides, a process pool gives its workers 20 s to start, which is too short on a busy machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

WORKERS_START_WITHIN_S = 120

_REPAIRED = "_repaired_by_headrace"


def repair() -> None:
    """Apply the repairs to petastorm's pools, on any version of pyarrow; a second call changes nothing."""
    from petastorm.workers_pool import process_pool
    from petastorm.workers_pool.process_pool import ProcessPool
    from petastorm.workers_pool.thread_pool import ThreadPool
    from petastorm.workers_pool.ventilator import ConcurrentVentilator

    if hasattr(ThreadPool, _REPAIRED):
        return
    setattr(ThreadPool, _REPAIRED, True)
    ThreadPool.current_worker_done = _once_all_is_handed_out(ThreadPool.current_worker_done)
    ProcessPool.get_results = _until_all_is_processed(ProcessPool.get_results)
    ConcurrentVentilator.reset = _after_last_pass(ConcurrentVentilator.reset)
    process_pool._KEEP_TRYING_WHILE_ZMQ_AGAIN_IS_RAIZED_TIMEOUT_S = WORKERS_START_WITHIN_S


def _once_all_is_handed_out(worker_done: Callable[[Any, int], bool]) -> Callable[[Any, int], bool]:
    """`current_worker_done`, and with it `all_workers_done`, which is False while more is to come.

    Waiting for the thread whose turn it is cannot block: when its row group has not been handed out, all before it
    have been read, so there is room to hand it out.
    """

    @functools.wraps(worker_done)
    def worker_done_once_all_is_handed_out(pool: Any, worker_id: int) -> bool:
        all_handed_out = pool._ventilator is None or pool._ventilator.completed()  # asked before the counts
        return all_handed_out and worker_done(pool, worker_id)

    return worker_done_once_all_is_handed_out


def _until_all_is_processed(get_results: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`get_results` which believes "no more results" only if the counts still say so.

    When petastorm says it, all was handed out, so only now is the count of what was handed out final. A pool that
    somebody stopped has no more results, whatever its counts.
    """
    from petastorm.workers_pool import EmptyResultError

    @functools.wraps(get_results)
    def get_results_until_all_is_processed(pool: Any) -> Any:
        while True:
            try:
                return get_results(pool)
            except EmptyResultError:
                stopped = getattr(pool._ventilator, "_stop_requested", False)
                if stopped or pool._ventilated_items == pool._ventilated_items_processed:
                    raise

    return get_results_until_all_is_processed


def _after_last_pass(reset: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(reset)
    def reset_after_last_pass(ventilator: Any) -> None:
        if ventilator.completed() and ventilator._ventilation_thread:
            ventilator._ventilation_thread.join()
        reset(ventilator)

    return reset_after_last_pass
