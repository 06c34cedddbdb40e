"""Six pictures of two classes, in every form in which they may lie."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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


def written(table: object, place: Path, name: str = "x.parquet") -> Path:
    import pyarrow.parquet as pq

    pq.write_table(table, place / name)
    return place / name
