"""What tells sets of pictures apart: their digests; CIFAR-10; archives of every packing."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_pictures import LABELS, RNG, X, archive, arrays, encoded, folder, parquet, written

from saltus.data import Channels, Corrupt, open_images
from saltus.data.cifar10 import CIFAR10, open_cifar10
from saltus.data.decoded import InFile


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
