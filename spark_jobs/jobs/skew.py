"""Skew: requests as a release served them against the batch features, example by example."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from pyspark.sql import SparkSession
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.drift import SKEW, SKEW_PAGE, SkewReport
from schemas.errors import UserError
from schemas.release import RELEASE, Release
from schemas.settings import parse_model
from schemas.snapshot import Snapshot
from schemas.storage import absolute, join
from schemas.version import now_utc
from spark_jobs.command_line import parser, run, share, whole
from spark_jobs.drifting.verdicts import Limits, judge
from spark_jobs.hadoop_files import HadoopFiles
from spark_jobs.profiling.wording import integer, number, percent
from spark_jobs.publication import open_published
from spark_jobs.report_files import check_place, write_report
from spark_jobs.session import size_shuffles, step
from spark_jobs.skewing.differences import compare_features
from spark_jobs.skewing.distributions import observe_sides
from spark_jobs.skewing.page import headline, skew_page
from spark_jobs.skewing.replay import replay
from spark_jobs.skewing.served import read_impressions, sample_requests, served_features, shown_rows


@dataclass(frozen=True, kw_only=True)
class SkewConfig:
    landed: str
    release: str
    events: str
    out: str
    snapshot: str | None = None
    max_requests: int = 10_000
    max_share: float = 0.01
    tolerance: float = 1e-5
    min_rows: int = 100


def skew(spark: SparkSession, config: SkewConfig) -> None:
    """Replay, compare and write; the inputs never change."""
    check_place(spark, config.out, (SKEW, SKEW_PAGE))
    report = compare(spark, config)
    write_report(spark, config.out, (SKEW, SKEW_PAGE), report, skew_page(report))
    print_features(report)
    print(f"skew: {headline(report)}")
    print(f"skew: wrote {join(config.out, SKEW)}; open {join(config.out, SKEW_PAGE)}")


def compare(spark: SparkSession, config: SkewConfig) -> SkewReport:
    release = read_release(spark, config.release)
    snapshot = snapshot_of_release(spark, release, config.snapshot)
    events = open_published(spark, config.events, kind="events")
    size_shuffles(spark, sum(file.bytes for file in events.files("events")) // 8)
    with step(spark, "sample of requests"):
        requests = sample_requests(read_impressions(spark, config.landed), release.id, config.max_requests)
        num_requests = requests.count()
    shown = shown_rows(requests)
    served = served_features(shown).persist()
    with step(spark, "replay"):
        from_item = release.feedback.from_item if release.feedback is not None else {}
        batch = replay(spark, snapshot, events, shown, from_item).rows.persist()
        features = compare_features(
            served, batch, snapshot.transform.features, tolerance=config.tolerance, max_share=config.max_share
        )
    with step(spark, "distributions"):
        # Where every value is the batch's, so is their distribution.
        differing = [feature.feature for feature in features if feature.different]
        observed = observe_sides(spark, snapshot, served, batch, differing)
    names = {feature.name for feature in release.transform.features}
    unserved = sorted(names - {feature.feature for feature in features})
    return SkewReport(
        created_at=now_utc(),
        generation=release.id,
        requests=num_requests,
        tolerance=config.tolerance,
        max_share=config.max_share,
        features=features,
        distributions=judge(observed, Limits(min_rows=config.min_rows)),
        left_out={name: "the log holds no value of it: the release's models do not take it" for name in unserved},
    )


def read_release(spark: SparkSession, folder: str) -> Release:
    files, path = HadoopFiles(spark), join(folder, RELEASE)
    if not files.exists(path):
        raise UserError(f"{folder} is no release: it has no {RELEASE}. Give the folder that `headrace release` wrote.")
    try:
        content = json.loads(files.read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return parse_model(Release, content, where=path)


def snapshot_of_release(spark: SparkSession, release: Release, given: str | None) -> Snapshot:
    """The snapshot that the release was made of, wherever it lies now; UserError for another one."""
    snapshot = open_published(spark, given or release.snapshot.url, kind="snapshot")
    if snapshot.manifest.digest() != release.snapshot.digest:
        raise UserError(
            f"{snapshot.url} is not the snapshot that release {release.id} was made of ({release.snapshot.url}): its "
            "vocabularies would be others. Give that one with --snapshot."
        )
    return snapshot


def print_features(report: SkewReport, *, most: int = 20) -> None:
    """The worst features on the terminal."""
    table = Table(title="skew, the worst features first", title_justify="left", box=SIMPLE_HEAD)
    for head in ("feature", "verdict", "compared", "different", "share", "largest"):
        table.add_column(head, justify="left" if head in ("feature", "verdict") else "right")
    for feature in report.features[:most]:
        verdict = "skewed" if feature.feature in report.skewed else "ok"
        counts = (integer(feature.compared), integer(feature.different), percent(feature.share))
        table.add_row(*map(Text, (feature.feature, verdict, *counts, number(feature.largest))))
    Console(width=110, soft_wrap=True).print(table)
    if len(report.features) > most:
        print(f"and {len(report.features) - most} more features, in the report")


def main(arguments: list[str] | None = None) -> int:
    command = parser("skew", __doc__ or "")
    add = command.add_argument
    add("--landed", required=True, help="folder that `headrace land` wrote, with impressions/")
    add("--release", required=True, help="folder of the release whose requests are looked at")
    add("--events", required=True, help="event store: what the batch features may know of the time before a request")
    add("--snapshot", help="snapshot that the release was made of, where it lies elsewhere than the release says")
    add("--out", required=True, help="folder or URL for skew.json and skew.html")
    add("--max-requests", type=whole(1, 1_000_000), default=10_000, help="requests that are replayed, at most")
    add("--max-share", type=share, default=0.01, help="share of a feature's values that may differ")
    add("--tolerance", type=share, default=1e-5, help="relative difference of numbers that are not whole")
    add("--min-rows", type=whole(20, 1 << 30), default=100, help="values below which a distribution has no verdict")
    given = vars(command.parse_args(arguments))
    for name in ("landed", "release", "events", "snapshot", "out"):
        given[name] = absolute(given[name]).rstrip("/") if given[name] is not None else None
    config = SkewConfig(**given)
    return run("skew", lambda spark: skew(spark, config))


if __name__ == "__main__":
    sys.exit(main())
