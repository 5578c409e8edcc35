"""A writer for tests: appends numbered lines from several threads, and says of each that was acknowledged."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from pathlib import Path

from serving.append_log import AppendLog

LINE = '{"action_id":"%s","request_id":"r","item_id":"i","user_id":"u","action":"click","time_ms":1767225600000}'


def main() -> None:
    folder, name, threads, fsync = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    log = AppendLog(folder, writer="w", fsync=fsync, segment_bytes=20_000)
    numbers = itertools.count()

    def work() -> None:
        while True:
            action_id = f"{name}-{next(numbers)}"
            log.append((LINE % action_id).encode()).result()
            # One write of few bytes to a pipe: whole or not at all, and with the parent when this process is killed.
            os.write(1, f"{action_id}\n".encode())

    for _ in range(threads):
        threading.Thread(target=work).start()


if __name__ == "__main__":
    main()
