"""Bring about every bad situation and write ``docs/faults.md``: what was said, how it ended, what was lost.

python docs/faults.py            writes the table; exit status 1 if something was not as it should be
python docs/faults.py WORD ...   only situations whose titles hold one of the words, to the terminal
"""

from __future__ import annotations

import html
import re
import sys
import tempfile
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "end_to_end"))

import bad_files  # noqa: E402
import bad_runs  # noqa: E402
from kit import RUN, Kit, Ran, tolerant_remove  # noqa: E402
from situations import Situation, Told  # noqa: E402

ALL = [*bad_runs.ALL, *bad_files.ALL]

QUIET = "--quiet"

HEAD = """\
# When something goes wrong

Written by `make faults`, which brings about each situation and lets a command meet it, in a process and a
folder of its own. The process is forked from one that has imported PyTorch, but for torchrun, of whose output
only the lines of Saltus are shown. Signals, full and sealed folders, damaged files and limits of memory are
real; the signals are sent at a chosen step or within a save, so that every phase is met. Only three things
are put into the program: the teacher that is NaN, the package that is missing, and pauses between steps. For
`| head` the reader of a pipe closes it while the run trains.

What a command said is its standard error, word for word but for folders (TMP), process ids (PID) and numbers
that time or the machine decides (N). What was lost was found out by hashing all files before and after, or by
giving the same command again and comparing the weights that it ends with to those of a run that nothing
disturbed, byte for byte, on a CPU.

`RUN` stands for `{run}`.
{count} situations.
"""


def line(ran: Ran, root: Path) -> str:
    """What a command said, without what differs from day to day."""
    said = [text.strip("│╭╮╰╯─ ") for text in ran.lines]
    text = "\n".join(part for part in said if part)
    text = re.sub(rf"{re.escape(str(root))}(/\d+)?", "TMP", text)
    text = re.sub(r"process \d+ on \S+", "process PID on HOST", text)
    text = re.sub(r"[\d.]+ [KMG]iB were free", "N MiB were free", text)
    return re.sub(r"after step (?!30\b|40\b)\d+, which is saved", "after step N, which is saved", text)


def row(one: Situation, told: Told, root: Path) -> str:
    """A row of the table."""
    command = told.command or f"saltus {' '.join(told.ran.args)}"
    command = command.replace(f"saltus {' '.join(RUN)}", "RUN")
    command = command.replace(
        f"saltus {' '.join(word for word in RUN if word != QUIET)}", "RUN without --quiet"
    )
    status = told.ran.status if told.ran.status >= 0 else 128 - told.ran.status
    said = "<br>".join(html.escape(part, quote=False) for part in line(told.ran, root).splitlines())
    cells = (one.title, f"`{command}`", said or "(nothing)", str(status), told.lost)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(words: list[str]) -> int:
    """Run them, write the table."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    kit, failed, text = Kit(root / "kit"), 0, HEAD.format(run=f"saltus {' '.join(RUN)}", count=len(ALL))
    chosen = [one for one in ALL if not words or any(word.lower() in one.title.lower() for word in words)]
    for group, members in groupby(chosen, key=lambda one: one.group):
        text += f"\n## {group}\n\n| situation | command | what it said | exit status | what was lost |\n"
        text += "| --- | --- | --- | --- | --- |\n"
        for one in members:
            why = one.needs()
            if why:
                text += f"| {one.title} | | not brought about here: {why} | | |\n"
                continue
            kit.fresh()
            try:
                text += row(one, one.act(kit), root / "kit") + "\n"
                print(f"as it should be: {one.title}", file=sys.stderr)
            except AssertionError as wrong:
                failed += 1
                print(f"NOT as it should be: {one.title}\n{wrong}", file=sys.stderr)
    kit.close()
    tolerant_remove(root)
    if words:
        print(text)
    elif not failed:
        (ROOT / "docs" / "faults.md").write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
