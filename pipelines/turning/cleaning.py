"""Old generations lose what takes room: snapshot and runs, and the release where no rollback would go to it."""

from __future__ import annotations

import shutil

from pipelines.turning.wheel_folder import GenerationFolder, WheelFolder

_WHOLE = 3
"""Generations in service that stay as they are: the champion's, and those that one rollback or two go to."""


def clean(wheel: WheelFolder, *, keep: int) -> list[GenerationFolder]:
    """Clean all but the newest `keep`, the champion's and the two before it; give those that were.

    Where a rollback has gone, the next candidate is held against what lies there. Verdicts, reports
    and what is known of the turn stay.
    """
    in_use = list(wheel.releases_in_use())
    cleaned = []
    for folder in wheel.generations()[:-keep]:
        if folder.release in in_use[:_WHOLE]:
            continue
        heavy = [folder.snapshot, folder.run("retriever"), folder.run("ranker")]
        if folder.release not in in_use:
            heavy.append(folder.release)
        there = [path for path in heavy if path.exists()]
        for path in there:
            shutil.rmtree(path)
        if there:
            cleaned.append(folder)
    return cleaned
