"""Gathering the rows of many columns into batches: the one loop over values in the feed, in C (gather.c).

Where the C file was not compiled (an installation without a compiler) numpy does the same, at a third of the speed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Columns(dict[str, np.ndarray]):
    """Columns of the same rows by name, each of shape (rows, ...) and C-contiguous."""

    @cached_property
    def addresses(self) -> list[tuple[int, NDArray[np.uint64]]]:
        """Where the columns lie in memory, by the bytes of a row: what C is told of them, worked out once."""
        by_width: dict[int, list[int]] = {}
        for array in self.values():
            assert array.flags.c_contiguous
            width = array.dtype.itemsize * math.prod(array.shape[1:])
            by_width.setdefault(width, []).append(array.__array_interface__["data"][0])
        return [(width, np.array(addresses, dtype=np.uint64)) for width, addresses in by_width.items()]


Gather = Callable[[Columns, Columns, NDArray[np.int32], int, int, int, int], None]


def gather_with_numpy(
    sources: Columns, targets: Columns, order: NDArray[np.int32],
    first_row: int, run_rows: int, batch_rows: int, offset: int,
) -> None:  # fmt: skip
    """Write the rows `order` of each source into the target of the same name, as one lane's share of some batches.

    Batches have `batch_rows` rows, of which `run_rows` from `offset` on are this lane's. `order[i]` is row
    `first_row + i` of the lane, counted from the first batch. Sources and targets hold the same columns in the same
    order, targets all rows of the batches.
    """
    batch, in_run = np.divmod(np.arange(first_row, first_row + len(order)), run_rows)
    places = batch * batch_rows + in_run + offset
    for name, source in sources.items():
        targets[name][places] = source[order]


def _compiled() -> Gather | None:
    """gather.c, as the installation compiled it beside this file; None where it did not."""
    libraries = sorted(Path(__file__).parent.glob("_gather*.so"))
    if not libraries:
        return None
    function = ctypes.CDLL(str(libraries[0])).headrace_gather  # ctypes lets go of the GIL while it runs
    function.restype = None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [pointer, pointer, size, size, pointer, size, size, size, size]

    def gather(
        sources: Columns, targets: Columns, order: NDArray[np.int32],
        first_row: int, run_rows: int, batch_rows: int, offset: int,
    ) -> None:  # fmt: skip
        for (width, from_addresses), (target_width, addresses) in zip(
            sources.addresses, targets.addresses, strict=True
        ):
            assert (width, len(from_addresses)) == (target_width, len(addresses))
            to_addresses = addresses + np.uint64(offset * width)
            function(
                from_addresses.ctypes.data, to_addresses.ctypes.data, len(addresses), width,
                order.ctypes.data, len(order), first_row, run_rows, batch_rows,
            )  # fmt: skip

    return gather


gather: Gather = _compiled() or gather_with_numpy
