"""Drift: what changed between two snapshots, event stores, logs of predictions, or two windows of time, by column."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from pyspark.sql import SparkSession

from schemas.drift import DRIFT, DRIFT_PAGE, DriftReport
from schemas.storage import absolute, join
from schemas.version import now_utc
from spark_jobs.command_line import moment, parser, positive, run, whole
from spark_jobs.drifting.comparison import observe
from spark_jobs.drifting.page import drift_page
from spark_jobs.drifting.pairs import pair_of
from spark_jobs.drifting.sides import Side, Window, open_predictions, open_side
from spark_jobs.drifting.verdicts import Limits, Observed, judge
from spark_jobs.drifting.wording import headline, print_columns
from spark_jobs.profiling.wording import moment as shown_moment
from spark_jobs.report_files import check_place, write_report
from spark_jobs.session import size_shuffles, step

ALL: Window = (None, None)


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    reference: str
    current: str
    out: str
    reference_window: Window = ALL
    current_window: Window = ALL
    predictions: tuple[str, str] | None = None
    false_alarms: float = 0.05
    min_effect: float = 0.1
    min_rows: int = 100

    @property
    def limits(self) -> Limits:
        return Limits(false_alarms=self.false_alarms, min_effect=self.min_effect, min_rows=self.min_rows)


def drift(spark: SparkSession, config: DriftConfig) -> None:
    """Compare, judge and write; the inputs never change."""
    check_place(spark, config.out, (DRIFT, DRIFT_PAGE))
    report = compare(spark, config)
    write_report(spark, config.out, (DRIFT, DRIFT_PAGE), report, drift_page(report))
    print_columns("drift, the worst columns first", report.columns)
    print(f"drift: {headline(report)}")
    print(f"drift: wrote {join(config.out, DRIFT)}; open {join(config.out, DRIFT_PAGE)}")


def compare(spark: SparkSession, config: DriftConfig) -> DriftReport:
    """The verdicts of all columns and, where they are given, of the predictions, judged together."""
    with step(spark, "opening both sides"):
        sides = (
            open_side(spark, config.reference, config.reference_window),
            open_side(spark, config.current, config.current_window),
        )
    size_shuffles(spark, sum(map(_bytes, sides)))
    pair = pair_of(spark, *sides)
    observed, rows = observe(spark, pair)
    observed += predictions_of(spark, config)
    return DriftReport(
        created_at=now_utc(),
        reference=_named(config.reference, config.reference_window),
        current=_named(config.current, config.current_window),
        reference_rows=rows[0],
        current_rows=rows[1],
        false_alarms=config.false_alarms,
        min_effect=config.min_effect,
        columns=judge(observed, config.limits),
        left_out=dict(pair.left_out),
    )


def predictions_of(spark: SparkSession, config: DriftConfig) -> list[Observed]:
    if config.predictions is None:
        return []
    before = open_predictions(spark, config.predictions[0], config.reference_window)
    now = open_predictions(spark, config.predictions[1], config.current_window)
    return observe(spark, pair_of(spark, before, now))[0]


def _bytes(side: Side) -> int:
    files = side.snapshot.manifest.parts.values() if side.snapshot is not None else ()
    return sum(file.bytes for part in files for file in part)


def _named(url: str, window: Window) -> str:
    if window == ALL:
        return url
    start, end = (shown_moment(at) if at is not None else None for at in window)
    return url + (f", from {start}" if start else "") + (f" until {end}" if end else "")


def window(text: str) -> Window:
    """FROM,TO as ISO 8601; one of them may be left out."""
    start, comma, end = text.partition(",")
    if not comma or not (start.strip() or end.strip()):
        raise argparse.ArgumentTypeError(f"{text} is no window FROM,TO, such as 2024-05-01,2024-05-08")
    found = tuple(moment(part.strip()) if part.strip() else None for part in (start, end))
    if None not in found and found[0] >= found[1]:  # type: ignore[operator]
        raise argparse.ArgumentTypeError(f"{text}: the window ends before it begins")
    return found[0], found[1]


def chance(text: str) -> float:
    """Above 0, for what chance never exceeds is infinite; and below 1."""
    if not 1e-9 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no chance above 0 (0.000000001 at least) and below 1")
    return float(text)


def main(arguments: list[str] | None = None) -> int:
    command = parser("drift", __doc__ or "")
    add = command.add_argument
    add("--reference", required=True, help="what was: snapshot, event store, landed log, or Parquet of `prediction`")
    add("--current", required=True, help="what is: the same kind of folder; it may be the same one with windows")
    add("--out", required=True, help="folder or URL for drift.json and drift.html")
    add("--reference-window", type=window, default=ALL, metavar="FROM,TO", help="rows of this time alone, ISO 8601")
    add("--current-window", type=window, default=ALL, metavar="FROM,TO", help="rows of this time alone, ISO 8601")
    add(
        "--predictions",
        nargs=2,
        metavar=("REFERENCE", "CURRENT"),
        help="landed logs, whose scores are compared, or Parquet folders with a column `prediction`",
    )
    add("--false-alarms", type=chance, default=0.05, help="share of reports on unshifted rows that may name a column")
    add("--min-effect", type=positive, default=0.1, help="stability index below which a difference does not matter")
    add("--min-rows", type=whole(20, 1 << 30), default=100, help="rows of either side, below which there is no verdict")
    given = vars(command.parse_args(arguments))
    given |= {name: absolute(given[name]).rstrip("/") for name in ("reference", "current", "out")}
    if given["predictions"] is not None:
        given["predictions"] = tuple(absolute(folder).rstrip("/") for folder in given["predictions"])
    config = DriftConfig(**given)
    return run("drift", lambda spark: drift(spark, config))


if __name__ == "__main__":
    sys.exit(main())
