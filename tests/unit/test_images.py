"""Pictures are read as they are: every format against pixels that are known, and every fault by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from made_pictures import (
    LABELS,
    NAMES,
    ORDER,
    RNG,
    TRUTH,
    Make,
    X,
    archive,
    arrays,
    encoded,
    folder,
    hub,
    parquet,
    saved,
    shards,
    written,
)
from PIL import Image

from saltus.data import Channels, Corrupt, Images, open_images

FORMS: dict[str, tuple[Make, list[int]]] = {
    "folder": (folder, ORDER),
    "zip": (archive, ORDER),
    "parquet": (parquet, list(range(6))),
    "shards": (shards, list(range(6))),
    "dataset": (lambda _: hub(), list(range(6))),
    "saved dataset": (saved, list(range(6))),
    "npz": (arrays, list(range(6))),
}


@pytest.mark.parametrize(("make", "order"), FORMS.values(), ids=FORMS)
def test_every_form_gives_the_pixels_the_classes_and_a_digest_of_itself(
    make: Make, order: list[int], tmp_path: Path
) -> None:
    made = make(tmp_path)
    found = open_images(made)
    assert len(found) == 6 and found.shape == (3, 8, 8) and found.labels is not None
    assert torch.equal(found.read(torch.arange(6)), TRUTH[order])
    rows = torch.tensor([4, 1, 1])
    assert torch.equal(found.read(rows), TRUTH[order][rows]) and found.read(rows).dtype == torch.uint8
    assert found.labels.tolist() == [LABELS[k] for k in order]
    assert found.classes in (NAMES, ("0", "1"))
    grey = open_images(made, channels=Channels.GREY, labels=False)
    assert grey.shape == (1, 8, 8) and grey.labels is None and grey.classes is None
    luma = [torch.from_numpy(np.array(Image.fromarray(X[k]).convert("L"))) for k in order]
    assert torch.equal(grey.read(torch.arange(6))[:, 0], torch.stack(luma))
    assert open_images(made).digest == found.digest != grey.digest and len(found.digest) == 16
    with pytest.raises(ValueError, match="rows: expected int64"):
        found.read(torch.tensor([6]))


def test_a_jpeg_is_what_pillow_decodes_and_sizes_are_cropped_and_resampled(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (tmp_path / "a.jpg").write_bytes(encoded(x, "JPEG"))
    (tmp_path / "b.png").write_bytes(encoded(x[:10, :10]))
    with Image.open(tmp_path / "a.jpg") as image:
        decoded = image.convert("RGB")
    middle = decoded.crop((5, 0, 25, 20)).resize((8, 8), Image.Resampling.LANCZOS)
    found = open_images(tmp_path, size=8)
    assert found.labels is None and found.classes is None
    assert np.array_equal(found.read(torch.tensor([0]))[0].permute(1, 2, 0).numpy(), np.asarray(middle))
    (tmp_path / "b.png").unlink()
    whole = open_images(tmp_path).read(torch.tensor([0]))[0]
    assert np.array_equal(whole.permute(1, 2, 0).numpy(), np.asarray(decoded))


def test_arrays_in_both_layouts_and_grey(tmp_path: Path) -> None:
    for name, x in {"last": X, "first": TRUTH.numpy(), "grey": X[..., 0]}.items():
        np.save(tmp_path / f"{name}.npy", x)
    last, first, grey = (open_images(tmp_path / f"{name}.npy") for name in ("last", "first", "grey"))
    every = torch.arange(6)
    assert torch.equal(last.read(every), TRUTH) and torch.equal(first.read(every), TRUTH)
    assert grey.shape == (1, 8, 8) and torch.equal(grey.read(every), TRUTH[:, :1])
    small = open_images(tmp_path / "last.npy", size=4)
    half = Image.fromarray(X[3]).resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(small.read(torch.tensor([3]))[0].permute(1, 2, 0).numpy(), np.asarray(half))


def one(image: Image.Image, place: Path, kind: str, **options: object) -> Images:
    """A set of that picture alone."""
    place.mkdir(exist_ok=True)
    image.save(place / f"x.{kind}", **options)  # type: ignore[arg-type]
    return open_images(place, channels=Channels.RGB)


def test_pictures_that_are_not_plainly_rgb(tmp_path: Path) -> None:
    """Orientation, palettes, transparency, 16 bits, animations and CMYK."""

    def pixel(found: Images, row: int = 0, column: int = 0) -> list[int]:
        return found.read(torch.tensor([0]))[0, :, row, column].tolist()

    wide = Image.new("RGB", (4, 2), "black")
    wide.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    turned = one(wide, tmp_path / "exif", "png", exif=exif)
    assert turned.shape == (3, 4, 2) and pixel(turned, 0, 1) == [255] * 3 and pixel(turned) == [0] * 3
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(one(palette, tmp_path / "palette", "png")) == [10, 200, 30]
    assert pixel(one(palette, tmp_path / "hole", "png", transparency=1)) == [255] * 3
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 51))
    assert pixel(one(clear, tmp_path / "rgba", "png")) == [255, 204, 204]
    deep = Image.fromarray(np.full((2, 2), 0xAB12, dtype=np.uint16))
    assert pixel(one(deep, tmp_path / "deep", "png")) == [0xAB] * 3
    assert open_images(tmp_path / "deep").shape[0] == 1
    first, second = Image.new("RGB", (2, 2), "lime"), Image.new("RGB", (2, 2), "blue")
    moving = one(first, tmp_path / "gif", "gif", save_all=True, append_images=[second])
    assert pixel(moving) == [0, 255, 0]
    ink = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert pixel(one(ink, tmp_path / "cmyk", "tif")) == [255, 0, 0]


def damaged(place: Path) -> Path:
    """Two of six cut short, one of them where only decoding tells, and one that is no picture."""
    made = folder(place)
    jpeg = encoded(np.asarray(Image.fromarray(X[0]).resize((64, 64))), "JPEG")
    (made / "ant" / "0.png").write_bytes(encoded(X[0])[:-40])
    (made / "bee" / "1.png").write_bytes(jpeg[: len(jpeg) // 2])
    (made / "bee" / "3.png").write_bytes(b"hello")
    return made


def test_corrupt_pictures_stop_the_reading_or_are_left_out_by_name(tmp_path: Path) -> None:
    made = damaged(tmp_path)
    found = open_images(made, size=8)
    with pytest.raises(ValueError, match=r"3 cannot be decoded: ant/0.png \(.*bee/1.png.*bee/3.png") as told:
        found.read(torch.arange(6))
    assert "--corrupt skip" in str(told.value) and "\n" not in str(told.value)
    assert torch.equal(found.read(torch.tensor([1]))[0], TRUTH[ORDER[1]])
    left = open_images(made, size=8, corrupt=Corrupt.SKIP)
    good = [k for k in ORDER if k not in (0, 1, 3)]
    assert len(left) == 3 and torch.equal(left.read(torch.arange(3)), TRUTH[good])
    assert left.labels is not None and left.labels.tolist() == [LABELS[k] for k in good]
    assert [reason.split(" ")[0] for reason in left.corrupt] == ["ant/0.png", "bee/1.png", "bee/3.png"]
    assert left.digest != found.digest and not open_images(folder(tmp_path / "whole")).corrupt


def no_pictures(place: Path) -> Path:
    (place / "set").mkdir()
    return place / "set"


def of_two_sizes(place: Path) -> Path:
    made = folder(place)
    (made / "bee" / "4.png").write_bytes(encoded(X[0, :4]))
    return made


def columns(**more: object) -> Make:
    """A table of two pictures with these columns."""

    def make(place: Path) -> Path:
        import pyarrow as pa

        return written(pa.table(more), place)

    return make


def file(name: str, data: bytes) -> Make:
    def make(place: Path) -> Path:
        (place / name).write_bytes(data)
        return place / name

    return make


def array(x: np.ndarray) -> Make:
    stream = io.BytesIO()
    np.save(stream, x)
    return file("x.npy", stream.getvalue())


def without_a_shard(place: Path) -> Path:
    made = shards(place)
    (made / "data" / "train-00000-of-00002.parquet").unlink()
    return made


def split_without_train(place: Path) -> Path:
    for split in ("test", "val"):
        (place / "set" / split).mkdir(parents=True)
        (place / "set" / split / "0.png").write_bytes(encoded(X[0]))
    return place / "set"


def cut_dataset(place: Path) -> Path:
    (saved(place) / "state.json").write_text("{")
    return place / "set"


TWO = [encoded(X[0]), encoded(X[1])]
FAULTS: dict[str, tuple[Make, dict[str, object], str]] = {
    "nothing there": (lambda p: p / "nowhere", {}, "expected a folder or a file .*found nothing there"),
    "not a path": (lambda _: 3, {}, "expected a path or a datasets.Dataset, got int"),
    "another file": (file("x.txt", b"x"), {}, "got a .txt file"),
    "no pictures": (no_pictures, {}, r"expected pictures \(.bmp.*found none"),
    "no classes": (lambda p: folder(p) / "ant", {"labels": True}, "expected pictures with classes, got none"),
    "two sizes": (of_two_sizes, {}, "8 x 8 and bee/4.png of 8 x 4 pixels; give --image-size"),
    "size 0": (folder, {"size": 0}, "image size: expected at least one pixel, got 0"),
    "no such split": (folder, {"split": "train"}, "expected a split of ant, bee; got 'train'"),
    "splits": (split_without_train, {}, "expected a split of test, val; none was chosen"),
    "all corrupt": (lambda p: file("x.png", b"x")(p) and p, {}, "none of 1 can be read; x.png"),
    "no zip": (file("x.zip", b"PK"), {}, "expected a zip archive"),
    "cut zip": (lambda p: file("y.zip", archive(p).read_bytes()[:-30])(p), {}, "expected a zip archive"),
    "no parquet": (file("x.parquet", b"PAR1PAR1"), {}, "expected Parquet of one layout"),
    "no image column": (columns(a=[1]), {}, r"expected a column of encoded pictures.*got a \(int64\)"),
    "two image columns": (columns(a=TWO, b=TWO), {}, "got several, a, b; choose one with --image-column"),
    "no such column": (columns(a=TWO), {"image_column": "b"}, "expected a column named b of encoded"),
    "no such labels": (columns(a=TWO), {"label_column": "b"}, "expected a column b of whole numbers"),
    "gaps": (columns(a=TWO, label=[0, 2]), {}, r"without gaps, got 0, 2 \(2 classes up to 2\)"),
    "labels missing": (columns(a=TWO, label=[0, None]), {}, "got rows without one; use --no-labels"),
    "no rows": (columns(a=TWO[:0]), {}, "expected"),
    "a shard missing": (without_a_shard, {}, "expected 2 shards of train, got 1; missing: 0"),
    "floats": (array(X / 255.0), {}, r"expected uint8 .*got float64 \[6, 8, 8, 3\]"),
    "no channels": (array(X[..., :2]), {}, "expected 1, 3 or 4 channels as the second or the last axis"),
    "pickled": (file("x.npy", b"\x80\x04K\x01."), {}, "expected arrays that NumPy wrote"),
    "no dataset": (cut_dataset, {}, "expected a folder of Dataset.save_to_disk"),
}


@pytest.mark.parametrize(("make", "options", "told"), FAULTS.values(), ids=FAULTS)
def test_faults_are_told_in_a_line(make: Make, options: dict[str, object], told: str, tmp_path: Path) -> None:
    made = make(tmp_path)
    with pytest.raises(ValueError, match=told) as wrong:
        open_images(made, **options)  # type: ignore[arg-type]
    assert "\n" not in str(wrong.value)


def test_a_size_that_was_not_looked_at_is_told_when_it_is_met(tmp_path: Path) -> None:
    for k in range(40):
        (tmp_path / f"{k:02}.png").write_bytes(encoded(X[0, :4] if k == 21 else X[0]))
    found = open_images(tmp_path)
    with pytest.raises(ValueError, match="8 x 8 pixels like the first ones, got 21.png of 8 x 4"):
        found.read(torch.arange(40))


def test_splits_of_a_folder_and_names_as_labels(tmp_path: Path) -> None:
    for split, rows in {"train": (0, 1, 2), "test": (3, 4)}.items():
        for k in rows:
            path = tmp_path / "set" / split / NAMES[LABELS[k]] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(X[k]))
    train, test = open_images(tmp_path / "set"), open_images(tmp_path / "set", split="test")
    assert torch.equal(train.read(torch.arange(3)), TRUTH[[0, 2, 1]]) and train.classes == NAMES
    assert torch.equal(test.read(torch.arange(2)), TRUTH[[3, 4]])
    for make in (arrays, parquet, saved):
        (tmp_path / make.__name__).mkdir()
        made = make(tmp_path / make.__name__)
        with pytest.raises(ValueError, match="expected the split 'test', got a set .*; drop --split"):
            open_images(made, split="test")
    parquet_file = tmp_path / "test-00000-of-00001.parquet"
    parquet(tmp_path).rename(parquet_file)
    assert len(open_images(parquet_file, split="test")) == 6
    named = open_images(columns(picture=TWO, kind=["dog", "cat"])(tmp_path), label_column="kind")
    assert named.classes == ("cat", "dog") and named.labels is not None and named.labels.tolist() == [1, 0]
