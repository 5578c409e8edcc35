"""What petastorm's codecs wrote: images and arrays come as tensors, pickles are not opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from schemas.errors import SnapshotDamaged
from tests.training.test_columns import EACH, FIRST_FILE, NUM_ROWS, dtype_of, fed, with_row_id, write
from training.feed import Feed
from training.reader import open_folder

# After the reader, which makes petastorm fit to be imported.
from petastorm.codecs import CompressedImageCodec, CompressedNdarrayCodec, NdarrayCodec, ScalarCodec  # isort: skip
from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY  # isort: skip
from petastorm.unischema import Unischema, UnischemaField  # isort: skip


def unischema(**fields: tuple) -> Unischema:
    """By name: numpy type, shape, codec."""
    return Unischema("Rows", [UnischemaField(name, *field, False) for name, field in fields.items()])


def encoded(schema: Unischema, name: str, arrays: list[np.ndarray]) -> pa.Array:
    field = schema.fields[name]
    return pa.array([bytes(field.codec.encode(field, array)) for array in arrays], pa.binary())


def images(height: int = 4, width: int = 3) -> list[np.ndarray]:
    """Colour images whose every pixel is (row, 100, 200), so that swapped channels show."""
    return [np.full((height, width, 3), (row, 100, 200), dtype=np.uint8) for row in EACH]


PNG = (np.uint8, (4, 3, 3), CompressedImageCodec("png"))
PNG_OF_ANY_SIZE = (np.uint8, (None, None, 3), CompressedImageCodec("png"))


def test_images_and_arrays_that_petastorm_encoded_come_as_tensors(tmp_path):
    from pyspark.sql.types import IntegerType

    schema = unischema(
        row_id=(np.int64, (), None),
        image=PNG,
        grey=(np.uint8, (2, 2), CompressedImageCodec("png")),
        matrix=(np.float32, (2, 3), NdarrayCodec()),
        packed=(np.int64, (2,), CompressedNdarrayCodec()),
        scalar=(np.int32, (), ScalarCodec(IntegerType())),
    )
    table = with_row_id(
        image=encoded(schema, "image", images()),
        grey=encoded(schema, "grey", [np.full((2, 2), row, np.uint8) for row in EACH]),
        matrix=encoded(schema, "matrix", [np.array([[row, 1, 2], [3, 4, 5]], np.float32) for row in EACH]),
        packed=encoded(schema, "packed", [np.array([row, -row]) for row in EACH]),
        scalar=pa.array(EACH, pa.int32()),
    )
    rows = open_folder(write(tmp_path, table), unischema=schema)
    types = {name: dtype_of(rows, name) for name in ("image", "grey", "matrix", "packed", "scalar")}
    assert types == {
        "image": torch.uint8,
        "grey": torch.uint8,
        "matrix": torch.float32,
        "packed": torch.int64,
        "scalar": torch.int32,
    }
    found = fed(rows, workers=2)
    assert found["image"] == [[[[row, 100, 200]] * 3] * 4 for row in EACH]
    assert found["grey"] == [[[row, row], [row, row]] for row in EACH]
    assert found["matrix"] == [[[row, 1, 2], [3, 4, 5]] for row in EACH]
    assert found["packed"] == [[row, -row] for row in EACH]
    assert found["scalar"] == list(EACH)


def test_without_a_unischema_they_come_as_bytes(tmp_path):
    schema = unischema(image=PNG)
    stored = encoded(schema, "image", images())
    found = fed(open_folder(write(tmp_path, with_row_id(image=stored))))
    assert found["image"] == [list(value) for value in stored.to_pylist()]


def test_images_of_one_size_come_as_a_tensor_where_the_unischema_leaves_the_size_open(tmp_path):
    schema = unischema(image=PNG_OF_ANY_SIZE)
    rows = open_folder(write(tmp_path, with_row_id(image=encoded(schema, "image", images()))), unischema=schema)
    assert next(iter(Feed(rows, batch_size_per_rank=4)))["image"].shape == (4, 4, 3, 3)
    assert fed(rows)["image"] == [[[[row, 100, 200]] * 3] * 4 for row in EACH]


@pytest.mark.parametrize(
    "sizes",
    [[(4, 3)] * 19 + [(5, 3)], [(4, 3)] * FIRST_FILE + [(5, 3)] * 7, [(4, 3)] * FIRST_FILE + [(3, 4)] * 7],
    ids=["one of another size", "another size in the second file", "turned by a quarter in the second file"],
)
def test_images_of_several_shapes_are_refused(tmp_path, sizes):
    schema = unischema(image=PNG_OF_ANY_SIZE)
    drawn = [np.zeros((*size, 3), np.uint8) for size in sizes]
    with pytest.raises(SnapshotDamaged, match=r"part-1.parquet, row group [01], column 'image'"):
        fed(open_folder(write(tmp_path, with_row_id(image=encoded(schema, "image", drawn))), unischema=schema))


@pytest.mark.parametrize(
    ("promised", "stored"),
    [
        ((np.uint8, (5, 3, 3), CompressedImageCodec("png")), PNG),
        ((np.uint8, (3, 4, 3), CompressedImageCodec("png")), PNG),  # as many bytes
    ],
    ids=["larger", "turned by a quarter"],
)
def test_images_of_another_shape_than_the_unischema_says_are_refused(tmp_path, promised, stored):
    url = write(tmp_path, with_row_id(image=encoded(unischema(image=stored), "image", images())))
    with pytest.raises(SnapshotDamaged, match=r"part-[01].parquet, row group \d, column 'image'.*\(4, 3, 3\)"):
        fed(open_folder(url, unischema=unischema(image=promised)))


@pytest.mark.parametrize(
    "promised",
    [(np.int32, (2,), NdarrayCodec()), (np.float64, (1,), NdarrayCodec()), (np.float64, (2,), NdarrayCodec())],
    ids=["another type", "as many bytes", "another width"],
)
def test_arrays_of_another_type_than_the_unischema_says_are_refused(tmp_path, promised):
    stored = encoded(unischema(x=(np.float32, (2,), NdarrayCodec())), "x", [np.ones(2, np.float32)] * NUM_ROWS)
    url = write(tmp_path, with_row_id(x=stored))
    with pytest.raises(SnapshotDamaged, match=r"part-[01].parquet, row group \d, column 'x'.*float32"):
        fed(open_folder(url, unischema=unischema(x=promised)))


@pytest.mark.parametrize("junk", [b"this is no image", b"\x89PNG\r\n\x1a\n cut short", b""])
def test_bytes_that_are_no_image_are_named(tmp_path, junk):
    schema = unischema(image=PNG)
    stored = encoded(schema, "image", images()).to_pylist()
    stored[19] = junk
    rows = open_folder(write(tmp_path, with_row_id(image=pa.array(stored, pa.binary()))), unischema=schema)
    with pytest.raises(SnapshotDamaged, match=rf"{tmp_path}/part-1.parquet, row group 1, column 'image': .*decode"):
        fed(rows)


def test_an_image_that_is_null_is_refused_or_filled_with_encoded_bytes(tmp_path):
    schema = unischema(image=PNG)
    stored = encoded(schema, "image", images()).to_pylist()
    black = bytes(schema.image.codec.encode(schema.image, np.zeros((4, 3, 3), np.uint8)))
    stored[6] = None
    url = write(tmp_path, with_row_id(image=pa.array(stored, pa.binary())))
    with pytest.raises(SnapshotDamaged, match=r"part-0.parquet, row group 1, column 'image': 1 nulls, .* row 1"):
        fed(open_folder(url, unischema=schema))
    found = fed(open_folder(url, unischema=schema, fill={"image": black}))["image"]
    assert found[6] == [[[0, 0, 0]] * 3] * 4
    assert found[7] == [[[7, 100, 200]] * 3] * 4


class Poison:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["_common_metadata", "_metadata", "part-0.parquet"])
def test_a_pickle_in_the_folder_is_not_opened_and_its_row_group_counts_are_not_believed(tmp_path, name):
    touched, folder = tmp_path / "touched", tmp_path / "rows"
    poison = pickle.dumps(Poison(touched))
    believed = {"part-0.parquet": 1, "part-1.parquet": 7}
    table = with_row_id().replace_schema_metadata(
        {UNISCHEMA_KEY: poison, ROW_GROUPS_PER_FILE_KEY: json.dumps(believed).encode()}
    )
    url = write(folder, table if name.startswith("part") else with_row_id())
    if not name.startswith("part"):
        pq.write_metadata(table.schema, folder / name)

    assert fed(open_folder(url)) == {"row_id": list(EACH)}
    assert not touched.exists()

    pickle.loads(pq.read_schema(folder / name).metadata[UNISCHEMA_KEY])  # it would have shown
    assert touched.exists()


def test_an_array_of_pickled_objects_is_not_opened(tmp_path):
    import io

    touched, written = tmp_path / "touched", io.BytesIO()
    np.save(written, np.array([Poison(touched)], dtype=object), allow_pickle=True)
    url = write(tmp_path / "rows", with_row_id(x=pa.array([written.getvalue()] * NUM_ROWS)))
    with pytest.raises(SnapshotDamaged, match=r"row group \d, column 'x': .*pickle"):
        fed(open_folder(url, unischema=unischema(x=(np.float32, (1,), NdarrayCodec()))))
    assert not touched.exists()
