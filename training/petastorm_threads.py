"""Repairs races in petastorm 0.13.1's pools which lose or repeat rows without an error.

A pool's `get_results` asks first "is all that was handed out done?" and then "has all been handed out?".
What is handed out between the two questions is lost and the reading ends early, most often with few row
groups. Asked again in the other order nothing slips between: what was handed out stays counted.

`ConcurrentVentilator.reset` starts a thread for the next pass, while the last pass's thread may not yet have
noticed that it is over and would go on beside the new one, handing out row groups twice. It is made to wait.

A process pool gives its workers 20 s to start, which is too short on a busy machine.
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
    ThreadPool.get_results = _until_done(ThreadPool.get_results, ThreadPool.all_workers_done)
    ProcessPool.get_results = _until_done(ProcessPool.get_results, _all_processed)
    ConcurrentVentilator.reset = _after_last_pass(ConcurrentVentilator.reset)
    process_pool._KEEP_TRYING_WHILE_ZMQ_AGAIN_IS_RAIZED_TIMEOUT_S = WORKERS_START_WITHIN_S


def _all_processed(pool: Any) -> bool:
    return pool._ventilated_items == pool._ventilated_items_processed


def _until_done(get_results: Callable[[Any], Any], all_done: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """`get_results` which believes "no more results" only if all is done after all was handed out.

    When petastorm says "no more", all was handed out: only now is the count of what was handed out final. A
    pool that somebody stopped has no more results, whatever its counts.
    """
    from petastorm.workers_pool import EmptyResultError

    @functools.wraps(get_results)
    def get_results_until_done(pool: Any) -> Any:
        while True:
            try:
                return get_results(pool)
            except EmptyResultError:
                if all_done(pool) or getattr(pool._ventilator, "_stop_requested", False):
                    raise

    return get_results_until_done


def _after_last_pass(reset: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(reset)
    def reset_after_last_pass(ventilator: Any) -> None:
        if ventilator.completed() and ventilator._ventilation_thread:
            ventilator._ventilation_thread.join()
        reset(ventilator)

    return reset_after_last_pass
