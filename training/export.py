"""Export a trained model: to ONNX and torch.export, proved to score as the bundle; a ranker also with smaller tables.

A ranker gives probabilities by head from columns by name. A retriever gives two parts: its user tower (`users.onnx`)
and the vectors of all items (`items.safetensors`), whose dot product with a user's vector is the score.
"""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UserError
from schemas.export import EXPORT, Check, ExportManifest, TableCost
from schemas.programs import Parser
from schemas.settings import parse_model
from schemas.snapshot import Snapshot
from schemas.storage import absolute
from schemas.version import code_version, now_utc
from training.bundle import ITEMS, Bundle, bundle_digest, bundle_of, load_bundle, read_manifest
from training.checkpoint import write_json
from training.embeddings.quantised import PRECISIONS, Precision, QuantisedTables
from training.exporting.check import ROWS, TOLERANCE, check
from training.exporting.cost import lines_of, table_cost
from training.exporting.formats import (
    OPSET,
    Columns,
    Scorer,
    check_installed,
    module_scorer,
    onnx_scorer,
    program_of,
    torch_scorer,
    write_onnx,
    write_torch,
)
from training.exporting.items import write_items
from training.exporting.rows import drawn_rows, rows_of_valid, snapshot_of
from training.exporting.stock import files_of, versions
from training.exporting.traced import Traced, traced
from training.models.ranker import Ranker
from training.programs import run, speaker
from training.quantised_bundle import load_quantised, save_quantised, with_tables
from training.ranks import Ranks
from training.recipe import ClassifierSettings, Recipe

FORMATS = {"onnx": ("onnx",), "torch": ("torch",), "both": ("onnx", "torch")}
QUANTISED = "quantised"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for; without `tables` they stay float32 and no quantised form is written."""

    formats: tuple[str, ...]
    tables: Precision | None = None
    tolerance: float = TOLERANCE


def export(bundle_path: Path, to: Path, wanted: Wanted, say: Callable[[str], None]) -> ExportManifest:
    """Write the folder whole or not at all; one that stands already, of this bundle and these settings, is kept."""
    if "onnx" in wanted.formats:
        check_installed()
    recipe = Recipe.model_validate(read_manifest(bundle_path).recipe)
    if isinstance(recipe.model, ClassifierSettings):
        raise UserError(f"{bundle_path} holds a model {recipe.model.name}: only rankers and retrievers are exported.")
    bundle, digest = load_bundle(bundle_path), bundle_digest(bundle_path)
    if wanted.tables is not None and not isinstance(bundle.model, Ranker):
        raise UserError(f"{bundle.recipe.model.name} is a retriever: --tables is for the tables of rankers.")
    standing = _standing(to, digest, wanted)
    if standing is not None:
        say(f"{to} stands already, made of this bundle with these settings.")
        return standing
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f".{to.name}-{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        manifest = _write(draft, bundle, bundle_path, digest, wanted, say)
        draft.rename(to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"exported {to}: {', '.join(manifest.files)}")
    return manifest


def _standing(to: Path, digest: str, wanted: Wanted) -> ExportManifest | None:
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return None
    if not (to / EXPORT).exists():
        raise UserError(f"{to} is no export and not empty: give --to another name.")
    content = json.loads((to / EXPORT).read_text(encoding="utf-8"))
    found = parse_model(ExportManifest, content, where=str(to / EXPORT))
    has = tuple(
        name for name, ending in (("onnx", ".onnx"), ("torch", ".pt2")) if any(ending in f for f in found.files)
    )
    quantised = found.tables if any(file.startswith(QUANTISED) for file in found.files) else None
    if (found.bundle_digest, has, quantised) != (digest, wanted.formats, wanted.tables):
        raise UserError(f"{to} holds an export of another bundle, or with other settings: give --to another name.")
    return found


def _write(
    draft: Path, bundle: Bundle, bundle_path: Path, digest: str, wanted: Wanted, say: Callable[[str], None]
) -> ExportManifest:
    snapshot, model = snapshot_of(bundle.manifest.snapshot), bundle.model
    precision: Precision = wanted.tables or "float32"
    cost = None
    if isinstance(model, Ranker):
        smaller = with_tables(model, QuantisedTables.of(model.embeddings, precision))
        if wanted.tables is not None:
            save_quantised(draft / QUANTISED, smaller, precision, bundle_path)
            cost = _cost(model, smaller, bundle, snapshot, precision, say)
        model = smaller
    asked = traced(model, bundle.manifest)
    columns, rows_from = _rows(asked, bundle, snapshot)
    checked = _checked(draft, asked, columns, rows_from, wanted)
    for name, difference in checked.largest_difference.items():
        say(f"{name}: scores of {rows_from} differ by {difference:.2g} at most, in batches of 1, 7 and 512")
    if not isinstance(bundle.model, Ranker):
        write_items(bundle.retriever, bundle.items.num_rows, draft / "items.safetensors")
    if (bundle_path / ITEMS).exists():
        shutil.copyfile(bundle_path / ITEMS, draft / ITEMS)
    manifest = ExportManifest(
        created_at=now_utc(),
        code_version=code_version(),
        bundle_digest=digest,
        model=bundle.recipe.model.name,
        files=files_of(draft),
        inputs=asked.inputs,
        outputs=asked.outputs,
        heads=tuple(output.name for output in asked.outputs) if isinstance(bundle.model, Ranker) else (),
        tables=precision,
        opset=OPSET if "onnx" in wanted.formats else None,
        versions=versions(),
        check=checked,
        cost=cost,
    )
    write_json(draft / EXPORT, manifest.model_dump(mode="json"))
    return manifest


def _cost(
    before: Ranker, after: Ranker, bundle: Bundle, snapshot: Snapshot | None, precision: Precision,
    say: Callable[[str], None],
) -> TableCost:  # fmt: skip
    cost = table_cost(before, after, snapshot=snapshot, recipe=bundle.recipe, say=say)
    for line in lines_of(cost, precision):
        say(line)
    if snapshot is None:
        say(f"what that costs in quality is not known: {bundle.manifest.snapshot.url} cannot be opened")
    return cost


def _rows(asked: Traced, bundle: Bundle, snapshot: Snapshot | None) -> tuple[Columns, str]:
    if snapshot is not None and snapshot.manifest.rows("valid"):
        return rows_of_valid(snapshot, asked.inputs, ROWS), "rows of valid"
    return drawn_rows(bundle.manifest.transform, asked.inputs, ROWS), "rows drawn from the features' ranges"


def _checked(draft: Path, asked: Traced, columns: Columns, rows_from: str, wanted: Wanted) -> Check:
    """Write the wanted forms, and compare each, read back from its file, with the model itself."""
    program = program_of(asked, columns)
    scorers: dict[str, Scorer] = {}
    for name in wanted.formats:
        path = draft / f"{asked.name}{'.onnx' if name == 'onnx' else '.pt2'}"
        if name == "onnx":
            write_onnx(asked, program, path)
            scorers[path.name] = onnx_scorer(path)
        else:
            write_torch(program, path)
            scorers[path.name] = torch_scorer(path)
    if (draft / QUANTISED).exists():
        loaded = load_quantised(draft / QUANTISED)
        scorers[QUANTISED] = module_scorer(traced(loaded.model, loaded.manifest).module)
    return check(asked, columns, scorers, rows_from=rows_from, tolerance=wanted.tolerance)


def main(arguments: list[str] | None = None) -> int:
    command = Parser(prog="python -m training.export", description=__doc__)
    command.add_argument("--run", required=True, help="folder of the run, or of a bundle")
    command.add_argument("--to", required=True, help="folder of the export; it appears whole or not at all")
    command.add_argument("--format", choices=FORMATS, default="both", help="ONNX, torch.export's .pt2, or both (both)")
    command.add_argument(
        "--tables",
        choices=PRECISIONS,
        help="of rankers: tables with that many bits in every form, also as a torch-loadable folder quantised/",
    )
    command.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"difference of a score that is let pass ({TOLERANCE:g})"
    )
    given = command.parse_args(arguments)
    wanted = Wanted(formats=FORMATS[given.format], tables=given.tables, tolerance=given.tolerance)
    bundle, to = bundle_of(Path(absolute(given.run))), Path(absolute(given.to))

    def work(ranks: Ranks) -> None:
        export(bundle, to, wanted, speaker("export", ranks))

    return run("export", work)


if __name__ == "__main__":
    sys.exit(main())
