"""The profile's arithmetic by hand, its summary, and its page: escaped, self-contained, and as a browser shows it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from schemas.html import tag
from schemas.ledger import Ledger, SplitLedger, TableLedger
from schemas.profile import (
    ColumnProfile,
    Drift,
    GroupFigures,
    PartFiles,
    Profile,
    QuarantineRule,
    QuarantineSample,
    Slot,
    TableProfile,
    TimeProfile,
)
from spark_jobs.profiling.counts import Sums
from spark_jobs.profiling.figures import correlation_ratio, pearson, stability_index
from spark_jobs.profiling.findings import findings
from spark_jobs.profiling.page import page
from spark_jobs.profiling.quarantine import readable
from spark_jobs.profiling.slots import rank_slots, slot_of_rank
from spark_jobs.profiling.summary import summary
from spark_jobs.profiling.wording import number, percent, size

GOLDEN = Path(__file__).parent / "golden"
EVIL = "<script>alert(1)</script>"
EMPTY_TAGS = {"meta", "input", "br", "col", "hr", "link"}


def a_profile() -> Profile:
    """Three columns, the label among them, in two splits; every text that a log could fill holds a script."""
    label = ColumnProfile(
        name="label",
        type="float",
        kind="number",
        meaning="clicked",
        slots=(Slot(text="0", kind="value", low=0), Slot(text="1", kind="value", low=1)),
        groups={
            "train": GroupFigures(values=800, counts=(400, 400), mean_labels=(0, 1), min=0, max=1, mean=0.5, std=0.5),
            "test": GroupFigures(values=200, counts=(180, 20), mean_labels=(0, 1), min=0, max=1, mean=0.1, std=0.3),
        },
    )
    device = ColumnProfile(
        name="device_idx",
        type="int",
        kind="category",
        meaning=EVIL,
        vocabulary_size=5,
        slots=(
            Slot(text="padding", kind="padding"),
            Slot(text="null", kind="null"),
            Slot(text="unseen", kind="unseen"),
            Slot(text=EVIL, kind="value"),
            Slot(text='"><img src=x onerror=alert(1)>', kind="value"),
        ),
        groups={
            "train": GroupFigures(
                values=800,
                counts=(0, 8, 0, 600, 192),
                mean_labels=(None, 0.5, None, 0.4, 0.75),
                distinct_about=3,
                label_correlation_ratio=0.093,
            ),
            "test": GroupFigures(values=200, counts=(0, 0, 194, 4, 2), mean_labels=(None, None, 0.1, 0, 0)),
        },
        drift=(Drift(before="train", after="test", psi=9.1, by_chance=0.02),),
    )
    constant = ColumnProfile(
        name="site",
        type="float",
        kind="number",
        meaning="always the same",
        slots=(Slot(text="7", kind="value", low=7),),
        groups={"train": GroupFigures(values=800, counts=(800,), mean_labels=(0.5,), min=7, max=7, mean=7, std=0)},
    )
    time = TimeProfile(
        start_ms=0,
        bin_ms=86_400_000,
        counts={"train": (800, 0), "test": (0, 200)},
        mean_labels={"train": (0.5, None), "test": (None, 0.1)},
        hour_counts=(1000, *[0] * 23),
        hour_mean_labels=(0.42, *[None] * 23),
    )
    table = TableProfile(
        name="rows",
        groups={"train": 800, "test": 200},
        label="label",
        columns=(label, device, constant),
        time=time,
    )
    counts = TableLedger(
        lines=1051,
        headers=1,
        blanks=0,
        accepted=1000,
        duplicates=10,
        quarantined=40,
        quarantined_by_rule={"type:at": 40},
    )
    ledger = Ledger(tables={"events": counts}, splits=SplitLedger(accepted=1000, train=800, valid=0, test=200))
    return Profile(
        created_at="2024-05-02T10:00:00+00:00",
        code_version="0.0.0",
        url=f"/data/{EVIL}",
        id="shop",
        kind="snapshot",
        digest="0" * 64,
        published_at="2024-05-01T10:00:00+00:00",
        published_by="0.0.0",
        contract="shop",
        contract_meaning=EVIL,
        config={"split": EVIL},
        parents=(),
        ledger=ledger,
        parts=(PartFiles(part="train", files=1, rows=800, row_groups=1, bytes=1234, median_row_group_rows=800),),
        tables=(table,),
        quarantine=(
            QuarantineRule(
                table="events", rule="type:at", rows=40, samples=(QuarantineSample(line=EVIL, reason=f"is no {EVIL}"),)
            ),
        ),
        findings=tuple(findings((table,), ledger)),
    )


class Reader(HTMLParser):
    """Tags, texts, and that each tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        if name not in EMPTY_TAGS:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        self.texts.append(text)


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    assert not reader.open
    return reader


def test_stability_index_by_hand() -> None:
    # (3 + 1/2) / 5 = 0.7 and 0.3 before, the other way round after: (0.3 - 0.7) ln(0.3/0.7) + (0.7 - 0.3) ln(0.7/0.3).
    assert stability_index([3, 1], [1, 3]) == pytest.approx(0.8 * math.log(7 / 3))
    assert stability_index([30, 10], [30, 10]) == 0
    assert stability_index([30, 0], [0, 30]) > 3


def _sums(pairs: list[tuple[float, float]]) -> Sums:
    values, labels = [value for value, _ in pairs], [label for _, label in pairs]
    return Sums(
        values=len(pairs),
        labels=len(pairs),
        label=sum(labels),
        label_squares=sum(label * label for label in labels),
        value=sum(values),
        value_squares=sum(value * value for value in values),
        products=sum(value * label for value, label in pairs),
        min=min(values),
        max=max(values),
    )


def test_correlation_with_the_label_by_hand() -> None:
    assert pearson(_sums([(1, 2), (2, 4), (3, 6)])) == pytest.approx(1)
    assert pearson(_sums([(1, 1), (2, 0), (3, 1)])) == pytest.approx(0)
    assert pearson(_sums([(1, 1), (1, 0)])) is None
    # Two slots of labels 0, 0 and 0, 1: within 0.5 on 2 degrees of freedom, in all 0.75 on 3.
    assert correlation_ratio([_sums([(0, 0), (0, 0)]), _sums([(1, 0), (1, 1)])]) == pytest.approx(0)
    assert correlation_ratio([_sums([(0, 0), (0, 0)]), _sums([(1, 1), (1, 1)])]) == pytest.approx(1)
    assert correlation_ratio([_sums([(0, 1), (0, 1)])]) is None


def test_ranges_of_ranks_double_and_every_index_has_its_slot() -> None:
    slots = rank_slots(200, {3: "a"})
    assert [slot.text for slot in slots[:5]] == ["padding", "null", "unseen", "a", "index 4"]
    assert [slot.text for slot in slots[23:]] == ["rank 21 to 40", "rank 41 to 80", "rank 81 to 160", "rank 161 to 197"]
    for index in range(23, 200):
        slot = slots[slot_of_rank(index)]
        assert slot.low is not None
        assert slot.high is not None
        assert slot.low <= index - 2 <= slot.high
    assert len(rank_slots(5, {})) == 5


def test_findings_say_what_is_wrong_in_words() -> None:
    found = a_profile().findings
    assert [finding.text for finding in found] == [
        "events: 40 of 1,050 rows (3.8 %) are quarantined, most of them by the rule type:at (40)",
        "mean label falls from 0.5 in train to 0.1 in test",
        "device_idx: unseen in train: 97 % in test; the model knows nothing of these values",
        "device_idx: its values in test are quite unlike those in train (PSI 9.10)",
        "site: constant in train: it can tell nothing apart",
    ]
    assert {finding.level for finding in found} == {"warning"}


def test_summary_is_a_screenful_of_text() -> None:
    shown = summary(a_profile())
    assert f"{shown}\n" == (GOLDEN / "profile-summary.txt").read_text(encoding="utf-8")


def test_what_comes_from_the_log_is_text_and_never_markup() -> None:
    markup = page(a_profile())
    assert EVIL not in markup
    reader = read(markup)
    assert [name for name, _ in reader.tags].count("script") == 1
    assert not any(name == "img" or "onerror" in attributes for name, attributes in reader.tags)
    assert "".join(reader.texts).count(EVIL) >= 7
    assert tag("b", EVIL, title='"&').startswith('<b title="&quot;&amp;">&lt;script&gt;')


def test_page_needs_nothing_from_elsewhere() -> None:
    reader = read(page(a_profile()))
    policy = next(a["content"] for name, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not any({"src", "srcset"} & set(attributes) for _, attributes in reader.tags)
    assert {name for name, _ in reader.tags}.isdisjoint({"link", "iframe", "object", "embed"})
    links = [attributes["href"] or "" for name, attributes in reader.tags if name == "a"]
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_every_chart_has_words_for_those_who_do_not_see_it() -> None:
    charts = [attributes for name, attributes in read(page(a_profile())).tags if name == "svg"]
    assert charts
    assert all(chart.get("role") == "img" and chart.get("aria-label") for chart in charts)


@pytest.mark.parametrize(
    ("line", "whole", "shown"),
    [
        (b"u1\ta", 4, "u1\\ta"),
        (b"u\xff9", 3, "u\\xff9"),
        ("é".encode()[:1], 2, " … (2 bytes)"),
        (b"\x1b[31m\xe2\x80\xae", 8, "\\x1b[31m\\u202e"),
    ],
)
def test_a_refused_line_is_shown_with_escapes(line: bytes, whole: int, shown: str) -> None:
    assert readable(line, whole) == shown


def test_numbers_are_written_as_people_write_them() -> None:
    assert [number(n) for n in (None, 0, 3, 3.14159, 1234.5, 2_345_678, 5e-5)] == [
        "–",
        "0",
        "3",
        "3.14",
        "1,234",
        "2.35\u202fM",
        "5.0e-05",
    ]
    assert [percent(share) for share in (0, 0.0001, 0.5, 0.123, 0.9999, 1)] == [
        "0 %",
        "under 0.1 %",
        "50 %",
        "12.3 %",
        "over 99.9 %",
        "100 %",
    ]
    assert [size(count) for count in (0, 999, 1234, 18_300_000)] == ["0 B", "999 B", "1.2 kB", "18.3 MB"]


def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    file = tmp_path / "profile.html"
    file.write_text(page(a_profile()), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command += ["--enable-logging=stderr", "--v=0", "--dump-dom", f"{file.as_uri()}#rows-device_idx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    # The script ran: the policy knows its hash, it counted the columns, and opened the one that the address names.
    assert re.search(r'id="count"[^>]*>3 columns<', done.stdout)
    opened = [a for name, a in read_loosely(done.stdout) if name == "details" and "open" in a]
    assert [attributes["id"] for attributes in opened] == ["rows-device_idx"]


def read_loosely(markup: str) -> list[tuple[str, dict[str, str | None]]]:
    reader = Reader()
    reader.feed(markup)
    return reader.tags
