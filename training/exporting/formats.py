"""The two forms of an exported model: a torch.export program (`.pt2`) and ONNX, written and asked again."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from schemas.errors import UserError
from training.exporting.traced import Traced

OPSET = 18
EXTERNAL_ABOVE_BYTES = 1 << 30
"""An ONNX file ends at 2 GB, being one protobuf message: larger weights lie in a file beside it."""
_EXAMPLE_ROWS = 7  # more than one, or the batch's size would become part of the graph

Columns = Mapping[str, Tensor]
Scorer = Callable[[Columns], list[Tensor]]


def program_of(traced: Traced, columns: Columns) -> ExportedProgram:
    """Trace the module on some rows; the program takes any number of them."""
    example = {one.name: columns[one.name][:_EXAMPLE_ROWS] for one in traced.inputs}
    batch = Dim("batch", min=1)
    # Of nn.TransformerEncoder the fast path is one operator that no other runtime has.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _quiet():
            shapes = {"columns": {name: {0: batch} for name in example}}
            return torch.export.export(traced.module, (example,), dynamic_shapes=shapes)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def write_torch(program: ExportedProgram, path: Path) -> None:
    with _quiet():
        torch.export.save(program, path)


def write_onnx(
    traced: Traced, program: ExportedProgram, path: Path, *, external_above_bytes: int = EXTERNAL_ABOVE_BYTES
) -> None:
    """Write `path`, and beside large weights `path`.data."""
    with _quiet():
        onnx = torch.onnx.export(
            program,
            input_names=[one.name for one in traced.inputs],
            output_names=[one.name for one in traced.outputs],
            dynamic_shapes={"columns": {one.name: {0: "batch"} for one in traced.inputs}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert onnx is not None
        onnx.save(path, external_data=bytes_of(traced.module) > external_above_bytes)


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def torch_scorer(path: Path) -> Scorer:
    """Ask a program that this process has written: torch.export's files may hold what is unpickled."""
    with _quiet():
        return module_scorer(torch.export.load(path).module())


def module_scorer(module: nn.Module) -> Scorer:
    @torch.no_grad()
    def score(columns: Columns) -> list[Tensor]:
        return list(module(dict(columns)))

    return score


def onnx_scorer(path: Path) -> Scorer:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def score(columns: Columns) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {k: v.numpy() for k, v in columns.items()})]

    return score


def check_installed() -> None:
    """UserError where what writes and runs ONNX is missing: it comes with an extra of its own."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX is written by libraries that are not installed ({error}): pip install 'headrace[export]', or "
            "take --format torch."
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides (torchvision that is not there, constants not folded)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
