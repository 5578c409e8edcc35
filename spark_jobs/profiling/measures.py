"""What is measured of a table: each column as one or two measures, chosen by type and by the vocabulary it indexes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from schemas.contract import Column, Contract, TableName
from schemas.features import PADDING_IDX, Feature, FeatureTransform

DRAWN_ELEMENTS = 8
MAX_TEXT = 80
_KEPT, _SIZE = "_kept_", "_size_"
IDENTIFIERS = {"row_id", "query_id"}
_ITEM_LISTS = {"history", "seen", "negatives"}
_OURS = {
    "row_id": "name of the row: a hash of the log's key",
    "query_id": "query of the evaluation that the row belongs to",
    "user_idx": "row of the user vocabulary",
    "item_idx": "row of the item vocabulary",
    "user_id": "user as logged",
    "item_id": "item as logged",
    "event_time_ms": "when the event happened, UTC",
    "label": "what is to be predicted",
    "weight": "weight of the row in the loss",
    "propensity": "probability with which the item was shown",
    "history": "the user's last items before the event, oldest first",
    "seen": "items that a ranking leaves out",
    "negatives": "sampled items for the evaluation",
    "count": "occurrences in train",
    "title": "title as shown",
}

MeasureKind = Literal["number", "index", "text", "presence"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One distribution: `values` has one expression a row, or one for each element drawn from a list.

    number: any number, as double. index: row of a vocabulary, as double. text: a category by its text.
    presence: 0 where there is a value, for what cannot be compared.
    """

    name: str
    kind: MeasureKind
    values: tuple[SparkColumn, ...]
    is_element: bool = False
    vocabulary: str | None = None
    counts_distinct: bool = False
    drawn: SparkColumn | None = None
    """One element of the list, drawn evenly by a hash: what the sketches see of it."""

    @property
    def sampled(self) -> SparkColumn:
        """The one value of each row that the sketches see."""
        return self.values[0] if self.drawn is None else self.drawn


@dataclass(frozen=True, kw_only=True)
class ProfiledColumn:
    """A column with what the manifest says about it, and its measures."""

    name: str
    type: str
    meaning: str
    measure: Measure
    lengths: Measure | None = None
    feature: Feature | None = None
    contract_column: Column | None = None
    padded_length: int | None = None

    @property
    def is_padded(self) -> bool:
        return self.measure.vocabulary is not None or self.padded_length is not None

    @property
    def is_list(self) -> bool:
        return self.measure.is_element


def profiled_columns(
    schema: T.StructType, table: str, contract: Contract, transform: FeatureTransform | None
) -> list[ProfiledColumn]:
    """Every column of a table, in order. A new kind of feature is measured by its type and its vocabulary, if any."""
    features = {feature.name: feature for feature in transform.features} if transform is not None else {}
    vocabularies = transform.vocabularies if transform is not None else {}
    return [_profiled(field, table, contract, features.get(field.name), vocabularies) for field in schema.fields]


def with_lists(rows: DataFrame, columns: Sequence[ProfiledColumn]) -> DataFrame:
    """Add each list without its padding, and its size: a column each, for a measure refers to them many times."""
    types = {field.name: field.dataType for field in rows.schema.fields}
    kept, sizes = {}, {}
    for column in columns:
        kind = types[column.name]
        if isinstance(kind, T.ArrayType):
            whole, padding = F.col(f"`{column.name}`"), F.lit(PADDING_IDX)
            removes = column.is_padded and isinstance(kind.elementType, T.IntegralType)
            kept[_KEPT + column.name] = F.array_remove(whole, padding.cast(kind.elementType)) if removes else whole
            held = F.col(_KEPT + column.name)
            sizes[_SIZE + column.name] = F.when(held.isNotNull(), F.size(held))
    return rows.withColumns(kept).withColumns(sizes) if kept else rows


def _profiled(
    field: T.StructField, table: str, contract: Contract, feature: Feature | None, vocabularies: Mapping[str, Any]
) -> ProfiledColumn:
    vocabulary = getattr(feature, "vocabulary", None) or ("item" if field.name in _ITEM_LISTS else None)
    vocabulary = vocabulary if vocabulary in vocabularies else None
    length = getattr(feature, "length", None)
    source = _contract_column(field.name, table, contract, feature)
    lengths = None
    if isinstance(field.dataType, T.ArrayType):
        measure, lengths = _list_measures(field, vocabulary)
    else:
        measure = _scalar_measure(field, source, vocabulary)
    meaning = source.meaning if source is not None else ""
    ours = _OURS.get(field.name, "") if source is None or feature is None else ""
    return ProfiledColumn(
        name=field.name,
        type=field.dataType.simpleString(),
        meaning=": ".join(filter(None, (ours, meaning))) if ours != meaning else meaning,
        measure=measure,
        lengths=lengths,
        feature=feature,
        contract_column=source,
        padded_length=length,
    )


def _contract_column(name: str, table: str, contract: Contract, feature: Feature | None) -> Column | None:
    if feature is None and name in contract.labels:
        return contract.labels[name]
    owner: TableName | None = getattr(feature, "owner", None)
    wanted = getattr(feature, "source", None) if feature is not None else name
    roles = {
        "user_idx": "user",
        "item_idx": "item",
        "user_id": "user",
        "item_id": "item",
        "event_time_ms": "event_time",
    }
    role = roles.get(name, name if name in ("label", "weight", "propensity", "title") else None)
    looked_in = contract.tables()
    for candidate in (owner, table, "events"):
        for column in looked_in[candidate].columns if candidate in looked_in else ():
            if column.name == wanted or (role is not None and column.role == role):
                return column
    return None


def _scalar_measure(field: T.StructField, source: Column | None, vocabulary: str | None) -> Measure:
    value, kind = F.col(f"`{field.name}`"), field.dataType
    if field.name in IDENTIFIERS:
        return Measure(name=field.name, kind="presence", values=(_presence(value),), counts_distinct=True)
    if vocabulary is not None:
        return Measure(
            name=field.name, kind="index", values=(value.cast("double"),), vocabulary=vocabulary, counts_distinct=True
        )
    named = source is not None and source.role in ("user", "item", "categorical")
    if isinstance(kind, T.StringType | T.BooleanType) or (named and isinstance(kind, T.IntegralType)):
        text = F.substring(value.cast("string"), 1, MAX_TEXT)
        return Measure(name=field.name, kind="text", values=(text,), counts_distinct=True)
    number = _as_number(value, kind)
    if number is not None:
        return Measure(name=field.name, kind="number", values=(number,), counts_distinct=True)
    return Measure(name=field.name, kind="presence", values=(_presence(value),))


def _list_measures(field: T.StructField, vocabulary: str | None) -> tuple[Measure, Measure]:
    """The elements (up to DRAWN_ELEMENTS a row, evenly spaced from a start that a hash draws) and the lengths."""
    assert isinstance(field.dataType, T.ArrayType)
    element = field.dataType.elementType
    kept, size = F.col(_KEPT + field.name), F.col(_SIZE + field.name)
    start = F.pmod(F.xxhash64(size, F.get(kept, F.lit(0)), F.get(kept, F.lit(1))), F.lit(1 << 10)) / float(1 << 10)

    def drawn(number: int) -> SparkColumn:
        spread = F.floor((F.lit(float(number)) + start) * size / float(DRAWN_ELEMENTS)).cast("int")
        return F.get(kept, F.when(size <= DRAWN_ELEMENTS, F.lit(number)).otherwise(spread))

    elements = [*map(drawn, range(DRAWN_ELEMENTS)), F.get(kept, F.floor(start * size).cast("int"))]
    lengths = Measure(name=f"{field.name}.length", kind="number", values=(size.cast("double"),), counts_distinct=True)
    numbers = [number for value in elements if (number := _as_number(value, element)) is not None]
    kind: MeasureKind = "index" if vocabulary is not None else "number"
    if isinstance(element, T.StringType | T.BooleanType):
        kind, numbers = "text", [F.substring(value.cast("string"), 1, MAX_TEXT) for value in elements]
    elif not numbers:
        kind, numbers = "presence", [_presence(value) for value in elements]
    *values, one = numbers
    elements_of = Measure(
        name=field.name, kind=kind, values=tuple(values), drawn=one, is_element=True, vocabulary=vocabulary
    )
    return elements_of, lengths


def _presence(value: SparkColumn) -> SparkColumn:
    return F.when(value.isNotNull(), F.lit(0.0))


def _as_number(value: SparkColumn, kind: T.DataType) -> SparkColumn | None:
    if isinstance(kind, T.NumericType | T.BooleanType):
        return value.cast("double")
    if isinstance(kind, T.TimestampType):
        return F.unix_millis(value).cast("double")
    if isinstance(kind, T.DateType):
        return (F.unix_date(value) * 86_400_000.0).cast("double")
    return None
