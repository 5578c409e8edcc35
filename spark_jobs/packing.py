"""Indices packed several to a 64-bit word while rows travel: a Spark row gives every one of them 64 bits of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

_WORD_BITS = 63


@dataclass(frozen=True)
class Place:
    """Where an index lies: in the column `word`, `shift` bits up, `size` values wide."""

    word: str
    shift: int
    size: int

    @property
    def bits(self) -> int:
        return (self.size - 1).bit_length()


@dataclass(frozen=True)
class Packing:
    places: Mapping[str, Place]

    def pack(self, rows: DataFrame) -> DataFrame:
        """Replace the indices, which are not null, by words; an index that is no index of its table fails the job."""
        words: dict[str, Column] = {}
        for name, place in self.places.items():
            fits = F.col(name).between(0, place.size - 1)
            wrong = F.raise_error(F.concat(F.lit(f"{name} of {place.size:,} values has "), F.col(name).cast("string")))
            bits = F.shiftleft(F.when(fits, F.col(name)).otherwise(wrong.cast("int")).cast("long"), place.shift)
            words[place.word] = words[place.word].bitwiseOR(bits) if place.word in words else bits
        plain = [name for name in rows.columns if name not in self.places]
        # raise_error counts as null to Spark; words are not null, so that no column out of one is.
        whole = [F.coalesce(word, F.lit(0).cast("long")).alias(name) for name, word in words.items()]
        return rows.select(*plain, *whole)

    def column(self, name: str) -> Column:
        """An index out of packed rows: int32."""
        place = self.places[name]
        return F.shiftright(place.word, place.shift).bitwiseAND((1 << place.bits) - 1).cast("int")

    def unpack(self, rows: DataFrame) -> DataFrame:
        words = {place.word for place in self.places.values()}
        plain = [name for name in rows.columns if name not in words]
        return rows.select(*plain, *(self.column(name).alias(name) for name in self.places))


def packing(sizes: Mapping[str, int]) -> Packing:
    """Where the indices of so many values each go: the first word that has room for it, the widest index first."""
    room: list[int] = []
    places = {}
    for name, size in sorted(sizes.items(), key=lambda one: (-one[1], one[0])):
        bits = (size - 1).bit_length()
        number = next((n for n, left in enumerate(room) if left >= bits), len(room))
        if number == len(room):
            room.append(_WORD_BITS)
        places[name] = Place(f"_word_{number}", _WORD_BITS - room[number], size)
        room[number] -= bits
    return Packing(places)
