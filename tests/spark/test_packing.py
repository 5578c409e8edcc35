"""Indices packed into words: nothing is lost, nothing is mixed up, nothing out of range gets through."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from spark_jobs.packing import packing

SIZES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 2**31 - 1), min_size=1)


@given(sizes=SIZES)
def test_no_two_indices_share_a_bit(sizes: dict[str, int]) -> None:
    taken: dict[str, int] = {}
    for place in packing(sizes).places.values():
        bits = ((1 << place.bits) - 1) << place.shift
        assert bits < 1 << 63, "the sign is nobody's"
        assert not taken.get(place.word, 0) & bits
        taken[place.word] = taken.get(place.word, 0) | bits


def test_small_indices_share_a_word() -> None:
    assert {place.word for place in packing({f"c{i}": 1 << 6 for i in range(10)}).places.values()} == {"_word_0"}
    assert len({place.word for place in packing({"a": 2**31 - 1, "b": 2**31, "c": 4}).places.values()}) == 2


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sizes=SIZES)
def test_what_is_unpacked_is_what_was_packed(spark: SparkSession, data: st.DataObject, sizes: dict[str, int]) -> None:
    row = st.tuples(st.integers(), *(st.integers(0, size - 1) for size in sizes.values()))
    drawn = data.draw(st.lists(row, min_size=1, max_size=5))
    # The ends of every range, whatever was drawn.
    wanted = [(number, *values) for number, (_, *values) in enumerate(drawn)]
    wanted += [(98, *(0 for _ in sizes)), (99, *(size - 1 for size in sizes.values()))]
    rows = spark.createDataFrame(wanted, ", ".join(["id int", *(f"{name} int" for name in sizes)]))
    whole = packing(sizes)
    packed = whole.pack(rows)
    assert set(packed.columns) == {"id", *(place.word for place in whole.places.values())}
    assert sorted(tuple(one) for one in whole.unpack(packed).select("id", *sizes).collect()) == wanted


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_index_that_is_none_of_its_table_fails_the_job(spark: SparkSession, wrong: int) -> None:
    rows = spark.createDataFrame([(wrong, 0)], "tag int, item int")
    with pytest.raises(PySparkException, match=f"tag of 5 values has {wrong}"):
        packing({"tag": 5, "item": 9}).pack(rows).collect()
