"""Images: files of all kinds to one size, refused ones with a reason, splits by class, tars, and what training sees."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyspark.sql import SparkSession

from schemas.errors import SnapshotExists, UserError
from schemas.features import NUM_RESERVED
from schemas.snapshot import Snapshot, open_snapshot
from spark_jobs.hadoop_files import FileStatus
from spark_jobs.imaging import reading
from spark_jobs.imaging.fitting import Fit, ImageRefused, fitted
from spark_jobs.imaging.reading import files_of_tar
from spark_jobs.imaging.splitting import parse_shares
from spark_jobs.jobs.images import ImagesConfig, images
from training.augmentation import augmentation_of, augmented
from training.feed import Feed
from training.reader import open_part

SHAPES = ("circle", "cross", "square")
PER_CLASS = 60
FIT = Fit(size=32, mode="crop", format="png", quality=90, min_side=16, max_pixels=1_000_000)


def encoded(pixels: np.ndarray, ending: str = ".png") -> bytes:
    """`pixels` blue first, as OpenCV has them."""
    done, content = cv2.imencode(ending, pixels)
    assert done
    return content.tobytes()


def drawn(shape: str, number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A bright shape somewhere on a dark ground, never the same twice."""
    rng = np.random.default_rng([SHAPES.index(shape), number])
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    x, y, side = int(rng.integers(24, 40)), int(rng.integers(20, 28)), int(rng.integers(10, 14))
    colour = [int(value) for value in rng.integers(160, 256, 3)]
    if shape == "circle":
        cv2.circle(pixels, (x, y), side, colour, 2)
    elif shape == "square":
        cv2.rectangle(pixels, (x - side, y - side), (x + side, y + side), colour, -1)
    else:
        cv2.line(pixels, (x - side, y - side), (x + side, y + side), colour, 2)
        cv2.line(pixels, (x - side, y + side), (x + side, y - side), colour, 2)
    return pixels


def png_that_promises(width: int, height: int) -> bytes:
    """A few bytes that say they are an image of this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


WHOLE_JPEG, WHOLE_PNG = encoded(drawn("circle", 9_001), ".jpg"), encoded(drawn("cross", 9_002))
SAME = encoded(drawn("circle", 9_003))
FLIPPED = bytearray(WHOLE_PNG)
FLIPPED[len(WHOLE_PNG) // 2] ^= 0xFF
BROKEN: dict[str, tuple[bytes, str]] = {
    "circle/empty.jpg": (b"", "empty"),
    "circle/text.jpg": (b"no image at all", "format"),
    "circle/cut.jpg": (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "damaged"),
    "circle/header.jpg": (WHOLE_JPEG[:30], "damaged"),
    "cross/cut.png": (WHOLE_PNG[:-20], "damaged"),
    "cross/flipped.png": (bytes(FLIPPED), "damaged"),
    "cross/tiny.png": (encoded(np.zeros((15, 200, 3), np.uint8)), "too_small"),
    "square/bomb.png": (png_that_promises(60_000, 60_000), "too_large"),
    "lonely.png": (WHOLE_PNG, "class"),
    "cross/either.png": (SAME, "class_conflict"),
    "square/or.png": (SAME, "class_conflict"),
}
DUPLICATES = {"circle/copy é 1.png": encoded(drawn("circle", 0)), "circle/copy/2.png": encoded(drawn("circle", 0))}


def files() -> dict[str, bytes]:
    """By path: sixty good images a class, two copies of one of them, and every way to be refused."""
    found = {
        f"{shape}/{number:03}.png": encoded(drawn(shape, number)) for shape in SHAPES for number in range(PER_CLASS)
    }
    return found | DUPLICATES | {path: content for path, (content, _) in BROKEN.items()}


def write_files(root: Path, content: dict[str, bytes]) -> Path:
    for path, one in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(one)
    return root


def run_images(spark: SparkSession, given: Path | tuple[Path, ...], out: Path, **changes: Any) -> Snapshot:
    settings: dict[str, Any] = {"size": 32, "format": "png", "max_pixels": 1_000_000, "augment": "light"} | changes
    places = given if isinstance(given, tuple) else (given,)
    images(spark, ImagesConfig(images=tuple(map(str, places)), out=str(out), **settings))
    return open_snapshot(str(out))


def rows_by_path(snapshot: Snapshot) -> dict[str, tuple[str, dict[str, Any]]]:
    found = {}
    for split in ("train", "valid", "test"):
        for row in snapshot.read(split).to_pylist():
            assert row["path"] not in found
            found[row["path"]] = (split, row)
    return found


def mean_colour(content: bytes) -> list[int]:
    """Red, green, blue in the middle of an image."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
    return [int(value) for value in middle[::-1]]


# One image, without Spark.


def test_a_crop_takes_the_middle_a_pad_keeps_all_on_black_and_a_stretch_fills():
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:80], pixels[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    found = {}
    for mode in ("crop", "pad", "stretch"):
        fit = Fit(size=30, mode=mode, format="png", quality=90, min_side=16, max_pixels=1_000_000)
        image = fitted(encoded(pixels), fit)
        assert (image.width, image.height) == (120, 40)
        found[mode] = cv2.imdecode(np.frombuffer(image.content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert found[mode].shape == (30, 30, 3)
    assert (found["crop"] == (0, 255, 0)).all(), "the middle third and nothing else"
    assert (found["pad"][[0, 9, 20, 29]] == 0).all()
    assert (found["pad"][10:20, 2] == (255, 0, 0)).all()
    assert (found["pad"][10:20, 27] == (0, 0, 255)).all()
    assert (found["stretch"][:, 2] == (255, 0, 0)).all()
    assert (found["stretch"][:, 27] == (0, 0, 255)).all()


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize(
    ("orientation", "corner", "size"),
    [(1, (0, 0), (96, 64)), (3, (1, 1), (96, 64)), (6, (0, 1), (64, 96)), (8, (1, 0), (64, 96))],
)
@pytest.mark.parametrize("enlarged", [1, 8])
def test_an_image_is_turned_upright_and_its_size_is_that_of_the_upright_one(orientation, corner, size, enlarged):
    """At eight times the size the decoder itself makes it smaller."""
    pixels = np.zeros((64 * enlarged, 96 * enlarged, 3), np.uint8)
    pixels[: 32 * enlarged, : 48 * enlarged] = 255
    fit = Fit(size=32, mode="stretch", format="png", quality=90, min_side=16, max_pixels=1_000_000)
    image = fitted(with_orientation(encoded(pixels, ".jpg"), orientation), fit)
    assert (image.width, image.height) == (size[0] * enlarged, size[1] * enlarged)
    grey = cv2.imdecode(np.frombuffer(image.content, np.uint8), cv2.IMREAD_GRAYSCALE)
    bright = {(row, column) for row in (0, 1) for column in (0, 1) if grey[4 + 24 * row, 4 + 24 * column] > 128}
    assert bright == {corner}, "row and column of the bright quarter"


def test_grey_alpha_16_bits_and_every_format_become_three_colours_of_8_bits():
    plain = np.full((32, 32, 3), (30, 20, 200), np.uint8)  # blue, green, red
    half = np.dstack((plain, np.full((32, 32), 128, np.uint8)))
    grey = np.full((32, 32), 70, np.uint8)
    kinds = {
        "colour": (encoded(plain), [200, 20, 30]),
        "grey": (encoded(grey), [70, 70, 70]),
        "grey jpeg": (encoded(grey, ".jpg"), [70, 70, 70]),
        "16 bits": (encoded(plain.astype(np.uint16) * 257), [200, 20, 30]),
        "grey of 16 bits": (encoded(grey.astype(np.uint16) * 257), [70, 70, 70]),
        "half transparent": (encoded(half), [227, 137, 142]),  # on white
        "half transparent, 16 bits": (encoded(half.astype(np.uint16) * 257), [227, 137, 142]),
        "webp": (encoded(plain, ".webp"), [200, 20, 30]),
        "transparent webp": (encoded(half, ".webp"), [227, 137, 142]),
        "bmp": (encoded(plain, ".bmp"), [200, 20, 30]),
        "tiff": (encoded(plain, ".tiff"), [200, 20, 30]),
        "gif": (encoded(plain, ".gif"), [200, 20, 30]),  # OpenCV writes few colours
    }
    for name, (content, expected) in kinds.items():
        found = mean_colour(fitted(content, FIT).content)
        assert np.abs(np.subtract(found, expected)).max() <= (40 if name == "gif" else 2), (name, found)


def test_a_cmyk_jpeg_is_read():
    pillow = pytest.importorskip("PIL.Image")
    stored = io.BytesIO()
    pillow.new("CMYK", (40, 40), (0, 255, 255, 0)).save(stored, "JPEG")  # no cyan, all magenta and yellow: red
    found = mean_colour(fitted(stored.getvalue(), FIT).content)
    assert found[0] > 200
    assert max(found[1:]) < 60


@pytest.mark.parametrize("path", [path for path, (_, rule) in BROKEN.items() if not rule.startswith("class")])
def test_what_cannot_be_an_image_is_refused_with_its_rule(path):
    content, rule = BROKEN[path]
    with pytest.raises(ImageRefused) as refused:
        fitted(content, FIT)
    assert refused.value.rule == rule
    assert refused.value.reason


@pytest.mark.parametrize("ending", [".jpg", ".png", ".gif", ".bmp", ".tiff", ".webp"])
def test_no_cut_through_a_file_ends_in_anything_but_a_refusal(ending):
    content = encoded(drawn("cross", 1), ending)
    refused = 0
    for length in {*range(0, min(400, len(content))), *range(0, len(content), max(1, len(content) // 40))}:
        try:
            fitted(content[:length], FIT)
        except ImageRefused:
            refused += 1
    assert refused > 100, "a picture may be whole before its file's last bytes, and no more than that"


def test_noise_behind_a_valid_beginning_is_refused_or_read_but_never_ends_the_job():
    rng = np.random.default_rng(1)
    for ending in (".jpg", ".png", ".gif", ".bmp", ".tiff", ".webp"):
        whole = encoded(drawn("cross", 2), ending)
        for start in (2, 8, 12, 20, 60, 200):
            content = whole[:start] + rng.bytes(len(whole) - start)
            with suppress(ImageRefused):
                assert fitted(content, FIT).content


# Tars, without Spark.


def write_tar(path: Path, content: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, one in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(one), 1_700_000_000
            tar.addfile(member, io.BytesIO(one))
    return path


def members(path: Path) -> list[tuple[str, str | None]]:
    return [(file.path, file.rule) for file in files_of_tar(FileStatus(str(path), path.stat().st_size, 0))]


def test_a_tar_gives_its_files_and_not_its_folders_links_or_hidden_ones(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"./cat/1.png": b"1", "cat/.DS_Store": b"x", "cat/1.png": b"again"})
    with tarfile.open(path, "a") as tar:
        for kind, name in ((tarfile.DIRTYPE, "dog"), (tarfile.SYMTYPE, "dog/link.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../cat/1.png"
            tar.addfile(member)
    assert members(path) == [("a.tar/cat/1.png", None), ("a.tar/cat/1.png", "path"), ("a.tar/dog/link.png", "link")]


def test_a_tar_that_is_cut_short_or_damaged_says_so_after_what_it_gave(tmp_path):
    content = {f"cat/{number}.png": bytes([number]) * 700 for number in range(4)}  # 1,536 bytes each
    whole = write_tar(tmp_path / "whole.tar", content).read_bytes()
    assert [rule for _, rule in members(tmp_path / "whole.tar")] == [None] * 4
    damaged = bytearray(whole)
    damaged[2 * 1536 + 10] ^= 0xFF  # in the third header
    compressed = gzip.compress(whole)
    cases = {
        "in a file": (whole[: 2 * 1536 + 600], 2),
        "in a header": (whole[: 2 * 1536 + 100], 2),
        "between files": (whole[: 2 * 1536], 2),
        "header": (bytes(damaged), 2),
        "gzip": (compressed[: len(compressed) // 2], None),
        "no tar": (b"this is no tar" * 100, 0),
        "nothing": (b"", 0),
    }
    for name, (content_of_file, good) in cases.items():
        path = tmp_path / "cut.tar"
        path.write_bytes(content_of_file)
        found = members(path)
        assert found[-1] == ("cut.tar", "tar"), name
        assert all(rule is None for _, rule in found[:-1]), name
        assert good is None or len(found) == good + 1, name


def test_shares_that_are_none_are_refused():
    for text in ("0.8,0.1", "0.8,0.1,0.2", "0,0.5,0.5", "a,b,c", "1.2,-0.1,-0.1"):
        with pytest.raises(UserError, match="--split"):
            parse_shares(text)


# The job.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("images"), files())


@pytest.fixture(scope="module")
def snapshot(spark: SparkSession, folder: Path) -> Snapshot:
    return run_images(spark, folder, folder.parent / f"{folder.name}-snapshot")


@pytest.mark.slow
def test_every_file_is_accepted_a_duplicate_or_quarantined_with_its_reason(snapshot, folder):
    ledger = snapshot.manifest.ledger.tables["events"]
    assert ledger.lines == len(files()) == ledger.accepted + ledger.duplicates + ledger.quarantined
    assert (ledger.accepted, ledger.duplicates, ledger.quarantined) == (3 * PER_CLASS, 2, len(BROKEN))
    assert ledger.quarantined_by_rule == Counter(rule for _, rule in BROKEN.values())
    refused = {row["path"]: row for row in snapshot.read("quarantine/events").to_pylist()}
    assert {path: row["rule"] for path, row in refused.items()} == {path: rule for path, (_, rule) in BROKEN.items()}
    assert refused["square/bomb.png"]["reason"] == "60,000 x 60,000 pixels, and --max-pixels is 1,000,000"
    assert all(row["reason"] for row in refused.values())
    snapshot.verify()


@pytest.mark.slow
def test_rows_hold_the_image_of_their_path_at_the_asked_size(snapshot):
    rows, content = rows_by_path(snapshot), files()
    first_copy = min([*DUPLICATES, "circle/000.png"])
    assert set(rows) == {path for path in files() if path not in BROKEN} - (
        {*DUPLICATES, "circle/000.png"} - {first_copy}
    )
    for path, (_, row) in rows.items():
        assert row["label"] == SHAPES.index(path.split("/")[0])
        assert (row["width"], row["height"]) == (64, 48)
        assert row["image"] == fitted(content[path], FIT).content
        assert row["event_time_ms"] > 1_600_000_000_000
    assert len({row["row_id"] for _, row in rows.values()}) == len(rows)


@pytest.mark.slow
def test_shares_hold_in_every_class_and_classes_are_a_vocabulary(snapshot):
    counts = Counter((split, row["label"]) for split, row in rows_by_path(snapshot).values())
    for label in range(3):
        for split, share in (("train", 48), ("valid", 6), ("test", 6)):
            assert abs(counts[split, label] - share) <= 1
    entries = snapshot.read("vocab/class").to_pylist()
    assert [(entry["value"], entry["idx"]) for entry in entries] == [
        (s, NUM_RESERVED + i) for i, s in enumerate(SHAPES)
    ]
    assert [entry["count"] for entry in entries] == [counts["train", label] for label in range(3)]
    assert snapshot.manifest.images is not None
    assert snapshot.manifest.images.classes == SHAPES
    assert snapshot.transform.vocabularies["class"].size == NUM_RESERVED + 3


@pytest.mark.slow
def test_the_same_images_and_settings_are_not_done_twice_and_others_do_not_replace_them(
    spark, folder, snapshot, capsys
):
    before = (Path(snapshot.url) / "manifest.json").read_bytes()
    run_images(spark, folder, Path(snapshot.url))
    assert "stands already" in capsys.readouterr().out
    with pytest.raises(SnapshotExists, match=r"\(seed\)"):
        run_images(spark, folder, Path(snapshot.url), seed=1)
    assert (Path(snapshot.url) / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_tars_give_the_same_images_and_what_a_killed_job_left_is_cleared(spark, folder, snapshot, tmp_path):
    content = files()
    names = sorted(content)
    tars = (
        write_tar(tmp_path / "one.tar", {f"top/{name}": content[name] for name in names[::2]}),
        write_tar(tmp_path / "two.tar.gz", {f"top/{name}": content[name] for name in names[1::2]}, "w:gz"),
    )
    out = tmp_path / "out"
    (out / "_staging" / "images").mkdir(parents=True)
    (out / "_writer").write_text("killed", encoding="utf-8")
    (out / "_staging" / "images" / "part-0.parquet").write_bytes(b"half a fi")
    found = run_images(spark, tars, out, strip_components=1)
    theirs = snapshot.manifest.ledger.tables["events"]
    assert found.manifest.ledger.tables["events"].quarantined_by_rule == theirs.quarantined_by_rule
    assert sorted(row["image"] for _, row in rows_by_path(found).values()) == sorted(
        row["image"] for _, row in rows_by_path(snapshot).values()
    )
    assert all(path.split("/")[:2] in (["one.tar", "top"], ["two.tar.gz", "top"]) for path in rows_by_path(found))
    assert not (out / "_staging").exists()


@pytest.mark.slow
def test_too_many_bad_images_stop_the_job_and_say_which(spark, tmp_path):
    root = write_files(tmp_path / "raw", {"a/1.png": WHOLE_PNG, "a/2.png": b"junk", "b/3.png": b""})
    with pytest.raises(UserError, match=r"2 of 3 files are quarantined, and --max-quarantined is 0.5.*(2|3).png"):
        run_images(spark, root, tmp_path / "out", max_quarantined=0.5)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none holds no files"):
        run_images(spark, tmp_path / "none", tmp_path / "out2")
    with pytest.raises(UserError, match="nowhere is not there"):
        run_images(spark, tmp_path / "nowhere", tmp_path / "out2")
    with pytest.raises(UserError, match=r"1.png is no tar"):
        run_images(spark, root / "a" / "1.png", tmp_path / "out2")


@pytest.mark.slow
def test_a_file_that_is_too_large_is_refused_without_being_read(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 50_000)
    large = encoded(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    root = write_files(tmp_path / "raw", {"a/1.png": WHOLE_PNG, "b/2.png": large, "b/3.png": SAME})
    found = run_images(spark, root, tmp_path / "out", max_quarantined=0.5)
    assert {row["path"] for row in found.read("train").to_pylist()} == {"a/1.png", "b/3.png"}, "one a class at least"
    assert found.manifest.ledger.tables["events"].quarantined_by_rule == {"too_large": 1}
    assert len(large) > 50_000


@pytest.mark.slow
def test_split_by_file_leaves_images_where_they_were_when_others_come(spark, tmp_path):
    some = {f"{s}/{n}.png": encoded(drawn(s, n)) for s in SHAPES for n in range(12)}
    more = {f"{s}/new{n}.png": encoded(drawn(s, 100 + n)) for s in SHAPES[:1] for n in range(20)}
    settings = {"split": "0.5,0.25,0.25", "split_by": "file", "size": 16}
    before = rows_by_path(run_images(spark, write_files(tmp_path / "raw", some), tmp_path / "one", **settings))
    after = rows_by_path(run_images(spark, write_files(tmp_path / "raw", more), tmp_path / "two", **settings))
    assert len(after) == len(before) + 20
    assert {path: after[path][0] for path in before} == {path: split for path, (split, _) in before.items()}


# What training sees.


@pytest.mark.slow
def test_the_feed_gives_decoded_images_each_once_over_two_ranks(snapshot):
    stored = {row["row_id"]: row for row in snapshot.read("train").to_pylist()}
    seen = []
    for rank in range(2):
        rows = open_part(snapshot, "train", columns=["row_id", "image", "label"])
        assert max(group.decoded_bytes / group.num_rows for group in rows.row_groups) == 32 * 32 * 3 + 12
        for batch in Feed(rows, batch_size_per_rank=16, rank=rank, world_size=2, workers=2):
            assert batch["image"].dtype == torch.uint8
            assert batch["image"].shape[1:] == (32, 32, 3)
            for row_id, image, label in zip(batch["row_id"].tolist(), batch["image"], batch["label"], strict=True):
                bgr = cv2.imdecode(np.frombuffer(stored[row_id]["image"], np.uint8), cv2.IMREAD_COLOR)
                assert np.array_equal(image.numpy(), bgr[:, :, ::-1])
                assert label == stored[row_id]["label"]
                seen.append(row_id)
    assert sorted(seen) == sorted(stored)


@pytest.mark.slow
@pytest.mark.parametrize("stored_as", ["png", "jpeg"])
def test_petastorms_own_reader_decodes_the_snapshot_to_the_same_pixels(spark, folder, snapshot, tmp_path, stored_as):
    if stored_as == "jpeg":
        few = write_files(tmp_path / "raw", {f"{s}/{n}.png": encoded(drawn(s, n)) for s in SHAPES for n in range(4)})
        snapshot = run_images(spark, few, tmp_path / "out", format="jpeg", split="0.5,0.25,0.25")
    from petastorm import make_reader  # after training.reader, which makes petastorm fit to be imported

    ours = {}
    for batch in Feed(open_part(snapshot, "train"), batch_size_per_rank=8):
        ours |= dict(zip(batch["row_id"].tolist(), batch["image"].numpy(), strict=True))
    with make_reader(f"file://{snapshot.url}/train", reader_pool_type="dummy", num_epochs=1) as reader:
        theirs = {int(row.row_id): row for row in reader}
    assert set(theirs) == set(ours)
    for row_id, row in theirs.items():
        assert row.image.dtype == np.uint8
        assert np.array_equal(row.image, ours[row_id])
        assert (row.width, row.height) == (64, 48)
        assert row.path.split("/")[0] == SHAPES[row.label]


@pytest.mark.slow
def test_a_small_model_learns_from_the_feed_with_augmentation(snapshot):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 5, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 5, stride=2), torch.nn.ReLU(),
        torch.nn.AdaptiveMaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(128, 3),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    feed = Feed(open_part(snapshot, "train", columns=["row_id", "image", "label"]), batch_size_per_rank=32)
    policy = augmentation_of(snapshot, "train")
    assert not policy.does_nothing
    assert augmentation_of(snapshot, "valid").does_nothing

    def scores(images_BHWC: torch.Tensor) -> torch.Tensor:
        return model(images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1)

    for epoch in range(20):
        for batch in feed:
            varied = augmented(batch["image"], batch["row_id"], policy, seed=0, epoch=epoch)
            loss = F.cross_entropy(scores(varied), batch["label"].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    right = total = 0
    with torch.no_grad():
        for batch in Feed(open_part(snapshot, "test"), batch_size_per_rank=32, shuffle=False):
            right += int((scores(batch["image"]).argmax(1) == batch["label"]).sum())
            total += batch.num_rows
    assert right / total > 0.8, f"{right} of {total}; one of three is chance"
