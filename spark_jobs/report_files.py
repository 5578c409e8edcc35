"""Writing a report and its page beside each other, so that a reader finds whole ones."""

from __future__ import annotations

import json

from pyspark.sql import SparkSession

from schemas.errors import UserError
from schemas.settings import Strict
from schemas.storage import join
from spark_jobs.hadoop_files import HadoopFiles


def check_place(spark: SparkSession, out: str, names: tuple[str, str]) -> None:
    """Raise UserError for a folder that holds anything else than this report, before anything is computed."""
    files = HadoopFiles(spark)
    if files.is_file(out):
        raise UserError(f"{out} is a file, and a folder is to be written: give another --out.")
    held = files.children(out) if files.exists(out) else []
    foreign = [name for name in held if not any(name == ours or name.startswith(f".{ours}.") for ours in names)]
    if foreign:
        raise UserError(f"{out} holds {foreign[0]!r}, which is no part of this report: give another --out.")


def write_report(spark: SparkSession, out: str, names: tuple[str, str], report: Strict, page: str) -> None:
    """The page first, then the JSON, each in one step: where the JSON stands anew, so does the page."""
    text = json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    files = HadoopFiles(spark)
    files.make_folder(out)
    files.replace_text(join(out, names[1]), page)
    files.replace_text(join(out, names[0]), text)
