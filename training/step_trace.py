"""The trace: a line for each batch that a rank learned from, to tell two runs apart to the row and to the bit."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from training.batch import Batch
from training.loop import Trace


def writer_of_steps(folder: Path, rank: int) -> Trace:
    """Appends to `steps-<rank>.jsonl`: epoch, step, rows, a checksum of their ids in order, the loss to the bit."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"steps-{rank:05d}.jsonl").open("a", encoding="utf-8", buffering=1)

    def write(epoch: int, batch: Batch, loss: float) -> None:
        ids = zlib.crc32(batch["row_id"].cpu().numpy().tobytes())
        line = {"epoch": epoch, "step": batch.step, "rows": batch.num_rows, "row_ids": ids, "loss": loss.hex()}
        file.write(json.dumps(line) + "\n")

    return write
