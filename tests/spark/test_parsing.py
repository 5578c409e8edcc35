"""Raw lines to raw fields: what is sound, and what is said of what is not."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import SparkSession

from schemas.contract import Source, Table
from schemas.errors import UserError
from schemas.settings import parse_model
from spark_jobs.transforms.parsing import check_header, header_of, with_raw_fields


def _table(names: str, *, lists: str = "", separator: str = " ", **source: Any) -> Table:
    columns: list[dict[str, Any]] = [
        {"name": name, "type": "list<string>" if name in lists else "string", "meaning": "x", "separator": separator}
        for name in names
    ]
    raw = {"source": {"path": "x", "delimiter": ","} | source, "key": [names[0]], "columns": columns}
    return parse_model(Table, raw, where="test")


def _parsed(spark: SparkSession, table: Table, lines: list[str], header: list[str] | None = None) -> list[list[Any]]:
    """By line: the raw fields, and what is wrong with the line."""
    frame = spark.createDataFrame([(line, "file") for line in lines], "line string, file string")
    names = [f"raw_{column.name}" for column in table.columns]
    rows = {
        row["line"]: [row[name] for name in (*names, "_corrupt")]
        for row in with_raw_fields(frame, table, header).collect()
    }
    assert len(rows) == len(lines)
    return [rows[line] for line in lines]


def test_a_header_line_is_read_with_the_sources_own_delimiter_and_quotes() -> None:
    assert header_of(b"a\tb:token\tc.d\r\n", Source(path="x")) == ["a", "b:token", "c.d"]
    assert header_of(b'a,"b,c"', Source(path="x", delimiter=",", quote='"')) == ["a", "b,c"]
    assert header_of(b'a,"b,c"', Source(path="x", delimiter=",")) == ["a", '"b', 'c"']


def test_a_header_that_lacks_a_column_is_refused_and_one_that_has_more_is_not() -> None:
    check_header(["b", "more", "a"], _table("ab"), where="events: log.csv")
    with pytest.raises(UserError, match=r"^events: log\.csv: column 'b' \(contract column 'b'\) is missing"):
        check_header(["a", "c"], _table("ab"), where="events: log.csv")


@pytest.mark.slow
def test_without_quotes_every_delimiter_parts_and_other_signs_are_text(spark: SparkSession) -> None:
    cases = {
        "x,y,z": ["x", "y", "z", None],
        'x,"y,z': ["x", '"y', "z", None],
        "x,,z": ["x", None, "z", None],
        "x, y ,z": ["x", " y ", "z", None],
        "\\,#y,'z'": ["\\", "#y", "'z'", None],
        "#x,y,z": ["#x", "y", "z", None],
        "æ,ø,å": ["æ", "ø", "å", None],
    }
    assert _parsed(spark, _table("abc"), list(cases)) == list(cases.values())
    wrong = {"x,y": 2, "x": 1, "x,y,z,w": 4, ",,,": 4}
    assert [row[-1] for row in _parsed(spark, _table("abc"), list(wrong))] == [
        f"{fields} fields, the header has 3" for fields in wrong.values()
    ]


@pytest.mark.slow
def test_with_quotes_a_delimiter_inside_them_is_text(spark: SparkSession) -> None:
    cases = {
        'x,"y,1",z': ["x", "y,1", "z", None],
        'x,"say ""hi""",z': ["x", 'say "hi"', "z", None],
        "x,y,": ["x", "y", None, None],
        "x,\\,z": ["x", "\\", "z", None],
    }
    table = _table("abc", quote='"')
    assert _parsed(spark, table, list(cases)) == list(cases.values())
    wrong = ['x,"y,1"', 'x,"y,1",z,w', 'x,"y,z', '"x,y,z,w"']
    assert [row[-1] for row in _parsed(spark, table, wrong)] == ["another number of fields than the header's 3"] * 4


@pytest.mark.slow
def test_fields_are_found_by_the_header_whatever_its_order_and_its_other_names(spark: SparkSession) -> None:
    header = ["c", "a.b:x", "b", "b", "a"]
    assert _parsed(spark, _table("abc"), ["1,2,3,4,5"], header) == [["5", "3", "1", None]]


@pytest.mark.slow
def test_delimiters_and_separators_are_no_regular_expressions(spark: SparkSession) -> None:
    table = _table("ab", lists="b", separator="|", delimiter="::")
    assert _parsed(spark, table, ["x::u|v||w", "x::", "x::y::z"]) == [
        ["x", ["u", "v", "", "w"], None],
        ["x", None, None],
        ["x", ["y"], "3 fields, the header has 2"],
    ]


@pytest.mark.slow
def test_the_text_that_stands_for_null_is_null(spark: SparkSession) -> None:
    assert _parsed(spark, _table("ab", null="NA"), ["x,NA", "x,NAN"]) == [["x", None, None], ["x", "NAN", None]]


@pytest.mark.slow
def test_json_values_keep_their_text(spark: SparkSession) -> None:
    cases = {
        '{"a": "x", "b": ["u", "v"], "more": 1}': ["x", ["u", "v"], None],
        '{"b": [1, null], "a": 1.25}': ["1.25", ["1", None], None],
        '{"a": 12345678901234567890}': ["12345678901234567890", None, None],
        '{"a": true, "b": []}': ["true", [], None],
        '{"a": null, "b": null}': [None, None, None],
        "  {}  ": [None, None, None],
    }
    table = _table("ab", lists="b", format="jsonl")
    assert _parsed(spark, table, list(cases)) == list(cases.values())


@pytest.mark.slow
def test_a_line_that_is_not_exactly_one_json_object_is_refused(spark: SparkSession) -> None:
    wrong = [
        '{"a": "x"',
        "x",
        '"x"',
        "1",
        "null",
        "[]",
        '[{"a": "x"}]',
        '{"a": "x", "b": "no list"}',
        '{"a": "x"} and more',
        '{"a": "x"} {"a": "y"}',
        '{"a": "x"}, {"a": "y"}',
        '{"a": "x"}}',
        '{"a": "x"}]',
        '{"a": "x"},',
    ]
    parsed = _parsed(spark, _table("ab", lists="b", format="jsonl"), wrong)
    assert [row[-1] for row in parsed] == ["the line is no JSON object of these columns"] * len(wrong)
