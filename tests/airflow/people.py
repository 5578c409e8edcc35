"""Sixty people at a wheel's server, who rate two films each; ends when their actions count, after the label window.

python -m tests.airflow.people WHEEL WINDOW_S
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.serving.people import reactions
from tests.serving.running_server import running


def main() -> int:
    wheel, window_s = sys.argv[1:]
    with running(Path(wheel)) as server:
        _, rated = reactions(server, [str(number) for number in range(1, 61)])
    time.sleep(float(window_s))
    print(f"people: {rated} ratings")
    return 0 if rated == 120 else 1


if __name__ == "__main__":
    sys.exit(main())
