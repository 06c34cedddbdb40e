"""What ``import saltus`` adds to ``import torch``: fresh processes in turns, medians.

    python benchmarks/import_time.py

Three things are timed: the package alone; the parts that a training script uses; and the first screen
of the command, ``saltus --help``, process start included.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median

import tyro

from saltus.report import Table

BOUND = 2.0

CODE = {
    "torch": "import torch",
    "torch, saltus": "import torch, saltus",
    "torch, saltus in use": "import torch; from saltus import maps, nn, samplers, training; "
    "from saltus.methods import discover; discover()",
}


@dataclass(frozen=True)
class Options:
    """How often.

    Attributes:
        rounds: fresh processes for each line; the median counts.
    """

    rounds: int = 7


def imported(code: str) -> float:
    """Seconds that the statements take in a fresh process, without the start of Python."""
    timed = f"import time; a = time.perf_counter(); {code}; print(time.perf_counter() - a)"
    run = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(run.stdout)


def helped() -> float:
    """Seconds of ``saltus --help`` as a process."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "saltus.cli", "--help"], capture_output=True, check=True)
    return time.perf_counter() - begin


def main(options: Options) -> int:
    """Measure and print; the exit status is 1 if the package adds more than two seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in (*CODE, "saltus --help")}
    for code in CODE.values():  # the first run fills the file cache and writes byte code
        imported(code)
    for _ in range(options.rounds):
        for name, code in CODE.items():
            seconds[name].append(imported(code))
        seconds["saltus --help"].append(helped())
    base = median(seconds["torch"])
    rows = [(name, median(v), median(v) - base) for name, v in seconds.items()]
    Table(["what", "seconds", "beyond torch"], rows, note=f"medians of {options.rounds} processes").show()
    added = median(seconds["torch, saltus in use"]) - base
    print(f"saltus adds {added:.2f} s to import torch, at most {BOUND:.0f} wanted")
    return int(added > BOUND)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
