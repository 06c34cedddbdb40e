"""``saltus distill``: a student from a teacher."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from saltus.methods import Need, discover
from saltus.recipes.options import HELP
from saltus.recipes.resolve import distilled, experiment
from saltus.recipes.run import carry_out

__all__ = ["distill"]

USAGE = """\
usage: saltus distill TEACHER [--method METHOD] [--options]
       saltus distill RUN/options.json [--options]     the same again, with changes

TEACHER is a run folder, or the weights file of a run, that learned a velocity;
or the folder of a diffusers pipeline, whose network gets a second time and is
trained, or adapters beside it (--lora). One of texts needs --prompts FILE.txt.

methods that learn from the teacher alone:
{free}

methods that need data too (--data RECIPE, --data FOLDER or --data FILE):
{data}

examples:
  saltus distill runs/digits-flow_matching
  saltus distill runs/digits-flow_matching --method lmd --data digits
  saltus distill runs/digits-flow_matching --guidance 3 --dry-run
  saltus distill DiT-XL-2-256/ --guidance 4
  saltus distill stable-diffusion-v1-5/ --prompts prompts.txt --lora 64

saltus distill TEACHER --help shows the options.
"""


def usage() -> str:
    """The page that ``saltus distill --help`` prints."""
    cards = {n: m.card.needs for n, m in discover().items() if Need.TEACHER in m.card.needs}
    free, data = (
        textwrap.fill(
            ", ".join(n for n, needs in cards.items() if (Need.DATA in needs) is wanted),
            78,
            initial_indent="  ",
            subsequent_indent="  ",
        )
        for wanted in (False, True)
    )
    return USAGE.format(free=free, data=data)


def distill(args: Sequence[str]) -> int:
    """The command: TEACHER and options."""
    if not args or args[0] in HELP:
        sys.stdout.write(usage())
        return 0
    if not args[0].endswith(".json"):
        return carry_out(distilled(Path(args[0]), args[1:]))
    made = experiment(args[0], args[1:])
    if made.teacher is None:
        raise ValueError(
            f"{args[0]}: expected the options of a distillation, got those of {made.name}, which names no "
            f"teacher; saltus run {args[0]} repeats it, saltus distill {Path(args[0]).parent} learns from it"
        )
    return carry_out(made)
