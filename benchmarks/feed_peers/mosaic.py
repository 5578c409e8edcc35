"""Mosaic Streaming: rows as bytes in MDS shards, shuffled by its default, py1e, in blocks of 262,144 rows or more.

Tried with 2 workers, 400,000 rows, batches of 16,384, 2 busy cores: rows as bytes joined to a batch 49 k rows/s (39 µs
of CPU a row), with 4 workers 47 k (42), with its StreamingDataLoader 47 k (44), an ndarray for each dtype and the
default collate 27 k (73), workers started anew in every epoch 17 k, py1s instead of py1e 26 k.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.feed_peers.loaders import Passes
from benchmarks.feed_peers.rows import Batch, Rows, joined, split

COLUMN = "row"


def stub_imports() -> None:
    """Stand-ins for two packages that `import streaming` imports for its image and text data sets.

    torchvision has no build for the CPU on the package registry, and the transformers that this release allows (< 5)
    refuses the huggingface_hub that Hugging Face datasets needs. Neither has a part in reading rows.
    """

    class Unused:
        pass

    names = {
        "torchvision": (),
        "torchvision.datasets": ("VisionDataset", "CIFAR10"),
        "torchvision.transforms": (),
        "torchvision.transforms.functional": ("to_tensor",),
        "transformers": (),
        "transformers.feature_extraction_utils": ("BatchFeature",),
        "transformers.tokenization_utils_base": ("BatchEncoding",),
        "transformers.models": (),
        "transformers.models.auto": (),
        "transformers.models.auto.tokenization_auto": ("AutoTokenizer",),
    }
    for name, attributes in names.items():
        module = ModuleType(name)
        vars(module).update(dict.fromkeys(attributes, Unused))
        sys.modules.setdefault(name, module)


def convert(rows: Rows, out: Path) -> None:
    stub_imports()
    from streaming import MDSWriter  # type: ignore[import-not-found]

    with MDSWriter(out=str(out), columns={COLUMN: "bytes"}) as writer:
        for records in rows.records():
            for row in records:
                writer.write({COLUMN: row.tobytes()})


def collate(samples: list[dict[str, Any]]) -> torch.Tensor:
    return joined([sample[COLUMN] for sample in samples])


def opened(formats: Path, rows: Rows, *, batch_size: int, workers: int) -> Passes:
    stub_imports()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]

    clean_stale_shared_memory()  # what a killed process left makes the next one refuse its folder
    dataset = StreamingDataset(local=str(formats), shuffle=True, batch_size=batch_size)
    loader = DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
    )

    def one_pass(epoch: int) -> Iterator[Batch]:  # the dataset counts its epochs itself
        return (split(batch, rows.record) for batch in loader)

    return one_pass
