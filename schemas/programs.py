"""What the command lines of all programs share: a mistake is answered in one line, with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from schemas.errors import UserError

TRIAL = "HEADRACE_TRIAL"
"""Variable that marks the processes of a search's trial; their OMP_NUM_THREADS is the search's or the user's."""


class Parser(argparse.ArgumentParser):
    """argparse without the usage in front of an error."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; --help shows what there is", file=sys.stderr)
        raise SystemExit(2)


def answering_mistakes(
    name: str, work: Callable[[], None], *, speaks: Callable[[UserError], bool] = lambda error: True
) -> int:
    """Do the work; give exit code 0, or 2 after one line about the user's mistake (said by who `speaks` of it)."""
    try:
        work()
    except UserError as error:
        if speaks(error):
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0
