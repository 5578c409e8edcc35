"""Lands a log over and over in a process of its own that is killed at a random moment; then once in peace.

It forks, so that a round costs milliseconds: arguments are logs, where to, rounds, and the longest wait in seconds.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from serving.land import land
from serving.parquet_days import ParquetDays
from serving.postgres_tables import PostgresTables


def main() -> None:
    logs, to, rounds, longest_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    choose, killed = random.Random(rounds), 0

    def once() -> None:
        sink = PostgresTables(to) if "://" in to else ParquetDays(Path(to))
        with contextlib.redirect_stdout(io.StringIO()):
            land(logs, sink, keep_hours=0)

    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            once()
            os._exit(0)
        # Evenly in the logarithm, so that fast machines are caught at work and slow ones get on.
        time.sleep(math.exp(choose.uniform(math.log(0.001), math.log(longest_s))))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    once()
    print(killed)


if __name__ == "__main__":
    main()
