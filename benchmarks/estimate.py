"""What ``saltus estimate`` says against what a run then shows: memory and time, as ratios.

For each line a fresh process estimates and another one trains: the peak of the process while training is in
the run's ``environment.json``, the time of a step follows from the first and last line of ``metrics.jsonl``.
``tensors`` is the part of the memory that was counted; the rest is Python, PyTorch and its libraries.

    python benchmarks/estimate.py --markdown
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from saltus.report import Table

LINES = (
    "digits-lsd --steps 150",
    "mixture-mean_flow --batch 4096 --steps 101",
    "checkerboard-lsd --backbone mlp --batch 65536 --steps 8",
    "digits-consistency_training --backbone unet --size small --batch 128 --steps 60",
    "digits-lsd --backbone dit --size small --batch 128 --precision float32 --steps 60",
    "digits-flow_matching --size large --batch 256 --steps 101",
    "digits-freeflow --teacher-steps 60 --steps 101",
)
ASK = """
import json, sys
from saltus.recipes.estimate import estimated
from saltus.recipes.resolve import experiment
made = experiment(sys.argv[1], sys.argv[2:])
found = estimated(made)
t, rows = made.training, found.growth.memory.rows
step = found.pace(rows, t.machine.accumulate)
print(json.dumps([found.growth.memory.total, found.total, step]))
"""


@dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        lines: recipes with their options; none means all.
        bound: the exit status is 1 if memory is off by more than this part.
        markdown: print the table as Markdown.
    """

    lines: tuple[str, ...] = ()
    bound: float = 0.2
    markdown: bool = False


def compare(line: str) -> list[str | float]:
    """One line of the table."""
    words = line.split()
    asked = subprocess.run(
        [sys.executable, "-c", ASK, *words], capture_output=True, text=True, check=True
    ).stdout
    tensors, process, step = json.loads(asked.splitlines()[-1])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        rest = ["--out", str(folder), "--skip-evaluation", "--quiet"]
        subprocess.run([sys.executable, "-m", "saltus.cli", "run", *words, *rest], check=True)
        shown = json.loads((folder / "environment.json").read_text())["memory_peak"]
        log = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    first, last = log[0] if len(log) > 1 else {"seconds": 0.0, "step": 0}, log[-1]
    took = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    memory = [count / 2**20 for count in (tensors, process, shown)]
    return [line, *memory, process / shown, 1e3 * step, 1e3 * took, step / took]


def main(options: Options) -> int:
    """Measure and print."""
    rows = [compare(line) for line in options.lines or LINES]
    memory = ["tensors MiB", "estimate MiB", "run MiB", "ratio"]
    table = Table(["saltus run", *memory, "estimate ms", "run ms", "time ratio"], rows)
    if options.markdown:
        print(table.markdown())
    else:
        table.show()
    return int(any(abs(float(row[4]) - 1.0) > options.bound for row in rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
