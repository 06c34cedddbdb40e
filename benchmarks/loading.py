"""How fast pictures come from the disk, and what a training step notices of it.

    OMP_NUM_THREADS=1 python benchmarks/loading.py

The first table: pictures a second, and that as a multiple of what a training step consumes (the small U-Net
for 32 x 32 pictures, method LSD, on this machine). Sets are made on the fly: 32 x 32 JPEG in Parquet, and
256 x 256 JPEG files in a folder, of smoothed noise, whose files are about as large as those of photographs.
The second table: the time of a step with loading over that of a step whose batch is at hand, which leaves out
the drawing of noise too. Ways take turns, and the fastest of several rounds counts, so that other
programs count little.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from saltus.data import ImageData, Images, Loading, open_images
from saltus.data.decoded import InFile, InMemory
from saltus.data.decoders import Decoders
from saltus.games import as_game
from saltus.maps import AverageVelocity
from saltus.methods import load
from saltus.nn import build
from saltus.streams import Streams
from saltus.training import fit
from saltus.typing import Batch

CLASSES = 10


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        small: pictures of 32 x 32.
        large: pictures of 256 x 256.
        batch: rows of a step.
        rounds: of each measurement; the fastest counts.
        steps: in a round of training.
        size: of the U-Net.
        workers: counts of decoding processes.
    """

    small: int = 4000
    large: int = 200
    batch: int = 32
    rounds: int = 3
    steps: int = 2
    size: str = "small"
    workers: tuple[int, ...] = (0, 1, 2)


def picture(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG of noise that is smooth over some pixels."""
    coarse = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (side, side, 3))
    stream = io.BytesIO()
    made = np.clip(np.asarray(image, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(made).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def table(place: Path, count: int) -> Path:
    """Parquet in the layout of the Hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    cells = [{"bytes": picture(rng, 32), "path": None} for _ in range(count)]
    pq.write_table(pa.table({"image": cells, "label": [k % CLASSES for k in range(count)]}), place)
    return place


def folder(place: Path, count: int) -> Path:
    """A folder of files in ten classes."""
    rng = np.random.default_rng(1)
    for k in range(count):
        path = place / str(k % CLASSES) / f"{k:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(rng, 256))
    return place


def seconds(action: Callable[[], object], rounds: int) -> float:
    """Of the fastest round."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        found.append(time.perf_counter() - begin)
    return min(found)


def rate(read: Callable[[Tensor], Tensor], count: int, batch: int, rounds: int) -> float:
    """Pictures a second, in batches of random rows; a first batch starts what has to start."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    read(order[:batch])

    def epoch() -> None:
        for rows in torch.split(order, batch):  # type: ignore[no-untyped-call]
            read(rows)

    return count / seconds(epoch, rounds)


def rates(images: Images, place: Path, options: Options) -> dict[str, float]:
    """Pictures a second by the way they come."""
    found, batch = {}, 4 * options.batch
    for workers in options.workers:
        with Decoders(workers) as decode:
            read = lambda rows, decode=decode: images.read(rows, decode)  # noqa: E731
            name = "decoded here" if not workers else f"decoded by {workers} process{'es' * (workers > 1)}"
            found[name] = rate(read, len(images), batch, options.rounds)
    every = torch.arange(len(images))
    for name, kept in {
        "kept in memory": InMemory(images, 2**31),
        "kept in a file": InFile(images, place),
    }.items():
        kept(every)
        found[name] = rate(kept, len(images), batch, options.rounds)
    return found


def trained(sources: dict[str, Callable[[Streams], Batch]], options: Options) -> dict[str, float]:
    """Seconds of a step with each source, in turns."""
    runs = {}
    for name, source in sources.items():
        torch.manual_seed(0)
        student = AverageVelocity(build("unet", options.size, (3, 32, 32), CLASSES))
        game = as_game(load("lsd").wired(student), student)
        steps = 10_000
        runs[name] = fit(game, source, steps=steps, seed=0, batch=options.batch)
        for _ in range(2):
            next(runs[name]).fetch()
    best = dict.fromkeys(runs, float("inf"))
    names = list(runs)
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            run = runs[name]
            begin = time.perf_counter()
            for _ in range(options.steps):
                next(run).fetch()
            best[name] = min(best[name], (time.perf_counter() - begin) / options.steps)
    return best


def main(options: Options) -> None:
    """Make the sets, measure, and print two tables."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        small = open_images(table(place / "small.parquet", options.small))
        large = folder(place / "large", options.large)
        plain = ImageData(small, options.batch, labels=True)
        at_hand = plain(Streams(0, index=torch.arange(options.batch)))
        plain.close()

        def loaded(workers: int, memory: int) -> ImageData:
            loading = Loading(workers, ahead=2, memory=memory)
            return ImageData(small, options.batch, labels=True, flip=True, loading=loading)

        sources: dict[str, Callable[[Streams], Batch]] = {
            "batch at hand": lambda _: at_hand,
            "decoded by 1 process, 2 steps ahead": loaded(1, 0),
            "decoded here, 2 steps ahead": loaded(0, 0),
            "kept in memory, 2 steps ahead": loaded(0, 2**31),
        }
        times = trained(sources, options)
        consumed = options.batch / times["batch at hand"]
        print(f"a step of {options.batch}: {consumed:,.0f} pictures/s consumed\n")
        print("| set | way | pictures/s | times what a step consumes |\n| --- | --- | ---: | ---: |")
        sets = {
            "32 x 32, Parquet": small,
            "256 x 256, folder": open_images(large),
            "256 x 256 to 32 x 32, folder": open_images(large, size=32),
        }
        for title, images in sets.items():
            for way, speed in rates(images, place / "kept", options).items():
                print(f"| {title} | {way} | {speed:,.0f} | {speed / consumed:,.1f} |")
        print("\n| pictures in a step | ms a step | over a batch at hand |\n| --- | ---: | ---: |")
        for way, each in times.items():
            print(f"| {way} | {1e3 * each:,.0f} | {each / times['batch at hand']:.3f} |")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
