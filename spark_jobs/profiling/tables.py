"""A table's profile: its columns measured in two passes, and its rows over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.features import FeatureTransform
from schemas.profile import ColumnKind, ColumnProfile, Slot, TableProfile, TimeProfile
from spark_jobs.profiling.counts import Counts, Sums, count
from spark_jobs.profiling.figures import NOTHING, drifts, figures_of, total
from spark_jobs.profiling.measures import Measure, ProfiledColumn, with_lists
from spark_jobs.profiling.sketches import GroupSketches, sketch
from spark_jobs.profiling.slots import SlotPlan, plan_slots

_MINUTE, _HOUR, _DAY = 60_000, 3_600_000, 86_400_000
_TIME_BINS = 120
_WIDTHS = [_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR, _DAY, 7 * _DAY, 30 * _DAY, 365 * _DAY]
_TIME, _HOURS = "over time", "hour of the day"
_KINDS: dict[str, ColumnKind] = {"number": "number", "index": "category", "text": "category", "presence": "other"}

Texts = Mapping[str, Mapping[int, str]]
"""The text of the first rows of each vocabulary."""


@dataclass(frozen=True, kw_only=True)
class TableInput:
    """Rows of a table with the column `group`; `present` says which columns each group has."""

    name: str
    rows: DataFrame
    groups: tuple[str, ...]
    present: Mapping[str, frozenset[str]]
    columns: Sequence[ProfiledColumn]
    label: str | None = None
    time: str | None = None


def profile_table(table: TableInput, transform: FeatureTransform | None, texts: Texts) -> TableProfile:
    """Sketch, choose slots, count, and work the figures out: two aggregations whatever the number of columns."""
    measures = [measure for column in table.columns for measure in (column.measure, column.lengths) if measure]
    rows = with_lists(table.rows, table.columns)
    sketches = sketch(rows, measures)
    groups = tuple(group for group in table.groups if group in sketches)
    owner = {
        measure.name: column.name for column in table.columns for measure in (column.measure, column.lengths) if measure
    }

    def groups_of(measure: Measure) -> list[str]:
        return [group for group in groups if owner[measure.name] in table.present[group]]

    plans: dict[str, SlotPlan] = {}
    for measure in measures:
        size = transform.vocabularies[measure.vocabulary].size if transform and measure.vocabulary else 0
        known = [sketches[group].by_measure[measure.name] for group in groups_of(measure)]
        plans[measure.name] = plan_slots(measure, known, size, texts.get(measure.vocabulary or "", {}))
    planned = [(measure, plans[measure.name]) for measure in measures]
    clock = _clock(table, groups, sketches)
    label_center = plans[table.label].center if table.label is not None else 0.0
    label = F.col(f"`{table.label}`") if table.label is not None else None
    counts = count(rows, [*planned, *(clock.measures if clock is not None else ())], label, label_center)

    def profile_of(column: ProfiledColumn, measure: Measure) -> ColumnProfile:
        plan, there = plans[measure.name], groups_of(measure)
        vocabulary = transform.vocabularies[measure.vocabulary] if transform and measure.vocabulary else None
        return ColumnProfile(
            name=measure.name,
            type=column.type if measure is column.measure else "int",
            kind="identifier" if measure.kind == "presence" and measure.counts_distinct else _KINDS[measure.kind],
            meaning=column.meaning if measure is column.measure else "values in the list",
            owner=getattr(column.feature, "owner", None),
            source=column.contract_column.name if column.contract_column is not None else None,
            role=column.contract_column.role if column.contract_column is not None else None,
            definition=column.feature.model_dump(mode="json") if column.feature is not None else {},
            vocabulary_size=vocabulary.size if vocabulary is not None else None,
            dropped_values=vocabulary.dropped_values if vocabulary is not None else 0,
            slots=tuple(slot for slot, _ in plan.shown),
            groups={
                group: figures_of(
                    measure,
                    plan,
                    sketches[group].by_measure[measure.name],
                    counts.get((group, measure.name), {}),
                    label_center,
                )
                for group in there
            },
            drift=drifts(plan, measure.name, there, counts) if len(there) > 1 else (),
            is_list=measure.is_element,
            lengths=profile_of(column, column.lengths) if column.lengths and measure is column.measure else None,
            padded_length=column.padded_length,
        )

    columns = tuple(profile_of(column, column.measure) for column in table.columns)
    return TableProfile(
        name=table.name,
        groups={group: sketches[group].rows for group in groups},
        label=table.label,
        columns=columns,
        time=clock.read(groups, counts, label_center) if clock is not None else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Clock:
    """The measures of time: bins of one width over the whole log, and hours of the day."""

    start_ms: int
    bin_ms: int
    bins: int
    measures: tuple[tuple[Measure, SlotPlan], ...]

    def read(self, groups: Sequence[str], counts: Counts, label_center: float) -> TimeProfile:
        def means(parts: Sequence[Sums]) -> tuple[float | None, ...]:
            return tuple(label_center + part.label / part.labels if part.labels else None for part in parts)

        over_time = {
            group: [counts.get((group, _TIME), {}).get(place, NOTHING) for place in range(self.bins)]
            for group in groups
        }
        hours = [total([counts.get((group, _HOURS), {}).get(hour, NOTHING) for group in groups]) for hour in range(24)]
        return TimeProfile(
            start_ms=self.start_ms,
            bin_ms=self.bin_ms,
            counts={group: tuple(part.values for part in parts) for group, parts in over_time.items()},
            mean_labels={group: means(parts) for group, parts in over_time.items()},
            hour_counts=tuple(part.values for part in hours),
            hour_mean_labels=means(hours),
        )


def _clock(table: TableInput, groups: Sequence[str], sketches: Mapping[str, GroupSketches]) -> _Clock | None:
    """The bins of time, from the first and the last moment, which the sketches hold exactly."""
    if table.time is None:
        return None
    known = [quantiles for group in groups if (quantiles := sketches[group].by_measure[table.time].quantiles)]
    if not known:
        return None
    first, last = int(min(quantiles[0] for quantiles in known)), int(max(quantiles[-1] for quantiles in known))
    width = next((width for width in _WIDTHS if (last - first) // width < _TIME_BINS), _WIDTHS[-1])
    start = first - first % width
    bins = (last - start) // width + 1
    time = F.col(f"`{table.time}`").cast("double")
    codes = {
        _TIME: (F.floor((time - float(start)) / float(width)), bins),
        _HOURS: (F.floor(F.pmod(time, F.lit(float(_DAY))) / float(_HOUR)), 24),
    }
    measures = tuple(
        (
            Measure(name=name, kind="presence", values=(code.cast("double"),)),
            SlotPlan("code", tuple(Slot(text=str(number), kind="value") for number in range(length))),
        )
        for name, (code, length) in codes.items()
    )
    return _Clock(start_ms=start, bin_ms=width, bins=bins, measures=measures)
