"""Pictures are read as they are: every format against pixels that are known, and every fault by name."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saltus.data import Channels, Corrupt, Images, open_images
from saltus.data.cifar10 import CIFAR10, open_cifar10
from saltus.data.decoded import InFile

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
TRUTH = torch.from_numpy(X.transpose(0, 3, 1, 2).copy())
LABELS = [0, 1, 0, 1, 1, 0]
NAMES = ("ant", "bee")
Make = Callable[[Path], object]


def encoded(x: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(x).save(stream, kind)
    return stream.getvalue()


def files() -> dict[str, bytes]:
    """Where each picture lies in a folder, by class, in the order of its rows."""
    places = sorted((f"{NAMES[label]}/{k}.png", k) for k, label in enumerate(LABELS))
    return {place: encoded(X[k]) for place, k in places}


ORDER = [int(Path(name).stem) for name in files()]


def folder(place: Path) -> Path:
    for name, data in files().items():
        path = place / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (place / "set" / "ant" / "notes.txt").write_text("no picture")
    (place / "set" / ".hidden.png").write_bytes(b"")
    return place / "set"


def archive(place: Path) -> Path:
    with zipfile.ZipFile(place / "set.zip", "w") as made:
        made.writestr("__MACOSX/set/ant/._0.png", b"")
        for name, data in files().items():
            made.writestr(f"set/{name}", data)
    return place / "set.zip"


def table(rows: range, image: str = "image", label: str = "label", features: bool = False) -> object:
    import pyarrow as pa

    cells = [{"bytes": encoded(X[k]), "path": None} for k in rows]
    made = pa.table({label: [LABELS[k] for k in rows], image: cells})
    if features:
        kinds = {label: {"names": list(NAMES), "_type": "ClassLabel"}, image: {"_type": "Image"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    return made


def parquet(place: Path) -> Path:
    import pyarrow.parquet as pq

    pq.write_table(table(range(6), features=True), place / "set.parquet", row_group_size=2)
    return place / "set.parquet"


def shards(place: Path) -> Path:
    import pyarrow.parquet as pq

    (place / "set" / "data").mkdir(parents=True)
    for k, rows in enumerate((range(4), range(4, 6))):
        path = place / "set" / "data" / f"train-0000{k}-of-00002.parquet"
        pq.write_table(table(rows, "img", features=True), path)
    other = table(range(2), "img", features=True)
    pq.write_table(other, place / "set" / "data" / "test-00000-of-00001.parquet")
    return place / "set"


def hub() -> object:
    import datasets

    kinds = {"label": datasets.ClassLabel(names=list(NAMES)), "image": datasets.Image()}
    cells = [{"bytes": encoded(x), "path": None} for x in X]
    return datasets.Dataset.from_dict({"label": LABELS, "image": cells}, datasets.Features(kinds))


def saved(place: Path) -> Path:
    hub().save_to_disk(str(place / "set"))  # type: ignore[attr-defined]
    return place / "set"


def arrays(place: Path) -> Path:
    np.savez(place / "set.npz", images=X, labels=np.array(LABELS))
    return place / "set.npz"


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


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    """Archives and tables with one other bit differ, wherever they lie; folders with a file of a new time."""
    for make in (archive, parquet, arrays):
        before = make(tmp_path)
        same = tmp_path / f"moved{before.suffix}"
        same.write_bytes(before.read_bytes())
        assert open_images(same).digest == open_images(before).digest
    X[0, 0, 0, 0] ^= 1
    try:
        for make in (archive, parquet, arrays):
            other = make(tmp_path)
            assert open_images(other).digest != open_images(tmp_path / f"moved{other.suffix}").digest
    finally:
        X[0, 0, 0, 0] ^= 1
    place = folder(tmp_path)
    before_change = open_images(place).digest
    assert open_images(place).digest == before_change
    (place / "bee" / "1.png").write_bytes(encoded(X[2]))
    assert open_images(place).digest != before_change


def test_a_digest_is_that_of_what_is_read(tmp_path: Path) -> None:
    """Other columns of one table, other arrays of one archive, another size or colour of one folder are other
    data, whatever is kept of them: decoded pictures, a classifier, statistics."""
    import datasets
    import pyarrow as pa

    table = pa.table(
        {
            "a": [encoded(x) for x in X],
            "b": [encoded(255 - x) for x in X],
            "one": LABELS,
            "two": [1 - k for k in LABELS],
        }
    )
    place = written(table, tmp_path)
    np.savez(tmp_path / "x.npz", a=X, b=255 - X, one=np.array(LABELS), two=1 - np.array(LABELS))
    files = folder(tmp_path)

    def digests(made: object, *options: dict[str, Any]) -> set[str]:
        return {open_images(made, **asked).digest for asked in options}

    columns_asked = [
        {"image_column": image, "label_column": label} for image in "ab" for label in ("one", "two")
    ]
    assert len(digests(place, *columns_asked)) == len(digests(tmp_path / "x.npz", *columns_asked)) == 4
    assert len(digests(datasets.Dataset(table), *columns_asked)) == 4
    forms: list[dict[str, Any]] = [{}, {"size": 4}, {"size": 6}, {"channels": Channels.GREY}]
    assert len(digests(files, *forms, *forms)) == 4
    kept = [
        InFile(open_images(place, image_column=c), tmp_path / "kept")(torch.arange(6)) for c in ("a", "b")
    ]
    assert torch.equal(kept[1], 255 - kept[0])


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


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_picture_of_an_archive_is_left_out_however_it_is_packed(kind: int, tmp_path: Path) -> None:
    place = tmp_path / "x.zip"
    with zipfile.ZipFile(place, "w", kind) as made:
        for k, x in enumerate(X):
            made.writestr(f"{k}.png", encoded(x))
        start = made.getinfo("1.png").header_offset + 30 + len("1.png")
    damaged_bytes = bytearray(place.read_bytes())
    damaged_bytes[start + 10 : start + 20] = bytes(10)
    place.write_bytes(damaged_bytes)
    found = open_images(place, corrupt=Corrupt.SKIP)
    assert len(found) == 5 and [told.split()[0] for told in found.corrupt] == ["1.png"]


def no_pictures(place: Path) -> Path:
    (place / "set").mkdir()
    return place / "set"


def of_two_sizes(place: Path) -> Path:
    made = folder(place)
    (made / "bee" / "4.png").write_bytes(encoded(X[0, :4]))
    return made


def written(table: object, place: Path, name: str = "x.parquet") -> Path:
    import pyarrow.parquet as pq

    pq.write_table(table, place / name)
    return place / name


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


def test_cifar10_from_parquet_and_from_the_binary_version(tmp_path: Path) -> None:
    import pyarrow as pa

    x = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(20) % 10
    (tmp_path / "hub").mkdir()
    (tmp_path / "binary").mkdir()
    cells = [{"bytes": encoded(each), "path": None} for each in x]
    for split in ("train", "test"):
        written(pa.table({"img": cells, "label": labels}), tmp_path / "hub", f"{split}.parquet")
    planes = x.transpose(0, 3, 1, 2).reshape(20, -1)
    records = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
    records[:10].tofile(tmp_path / "binary" / "data_batch_1.bin")
    records[10:].tofile(tmp_path / "binary" / "data_batch_2.bin")
    for name in ("hub", "binary"):
        found = open_cifar10(tmp_path / name)
        assert found.classes == CIFAR10 and found.name == "CIFAR-10, train"
        assert found.labels is not None and found.labels.tolist() == labels.tolist()
        assert torch.equal(found.read(torch.arange(20)), torch.from_numpy(x).permute(0, 3, 1, 2))
    assert len(open_cifar10(tmp_path / "hub", "test")) == 20
    (tmp_path / "binary" / "data_batch_2.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="expected records of 3,073 bytes, got 5 bytes"):
        open_cifar10(tmp_path / "binary")
    with pytest.raises(ValueError, match="pictures of 3 x 32 x 32 in 10 classes, got 3 x 8 x 8 in 2"):
        open_cifar10(parquet(tmp_path))
    for k in (0, 1, 3):  # the third is no bird
        (tmp_path / "some" / "train" / str(k)).mkdir(parents=True)
        (tmp_path / "some" / "train" / str(k) / "x.png").write_bytes(encoded(x[k]))
    with pytest.raises(ValueError, match="in 10 classes, got 3 x 32 x 32 in 3: 0, 1, 3"):
        open_cifar10(tmp_path / "some")
