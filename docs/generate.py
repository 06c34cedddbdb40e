"""Write what follows from the code: docs/methods.md, docs/table.md, README's table of methods and the
table of sizes in docs/networks.md.

``python docs/generate.py`` rewrites them (also ``make docs``); ``--check`` only says whether they are
current, and exits with status 1 if not.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from saltus.methods import Card, Method, Need, Sampler, discover
from saltus.nn import BACKBONES, build, parameter_count
from saltus.recipes.lists import AXES_NOTE, FACTS_NOTE, axes_table, facts_table, restored
from saltus.report import Cell, Table

ROOT = Path(__file__).resolve().parent.parent

POINT, DIGIT, SMALL, FACE, LATENT, LARGE = (2,), (1, 8, 8), (3, 32, 32), (3, 64, 64), (4, 32, 32), (4, 64, 64)
PUBLISHED = {
    **{f"dit {size}": count for size, count in {"s": 33, "b": 130, "l": 458, "xl": 675}.items()},
    **{f"edm2 {size}": count for size, count in {"xs": 125, "s": 280, "m": 498, "l": 778}.items()},
    **{"edm2 xl": 1119, "edm2 xxl": 1523, "ddpmpp cifar10": 55.7},
}
"""Millions of parameters in print, without what two times add."""
SEEN: dict[str, tuple[int, ...]] = {
    "mlp": POINT,
    "residual-mlp": DIGIT,
    "edm2 celeba64": FACE,
    **{full: LATENT for full in PUBLISHED if full.startswith("dit")},
    **{full: LARGE for full in PUBLISHED if full.startswith("edm2")},
}
"""What a network, or one size of it, is counted for; all others for pictures of 3 x 32 x 32."""
CLASSES = 1000
"""Of networks for latents."""

LEARNS = "learns"
MARKS = """\
† A constant or a formula is not from a primary source; the method's section says which. Restores: whether
away from the truth the expected gradient leads home from a wrong law of the data, and from a wrong map."""
"""Under the overview."""
HEAD = """\
# Methods

Written by `python docs/generate.py` from the cards and docstrings in `src/saltus/methods/`; do not edit.

Evaluations are the network calls of the forward pass of one training step for each row of the batch, counted
as the papers do: a call together with its derivative is 1.5. They are those of the plain form of the loss, of
its first stage, without discriminators. What a step takes is measured by
`benchmarks/step_time.py`. Map errors are one-step root mean squared distances to the exact flow map of the
reference mixture, squared error, mean of three seeds; a method must stay below its bound.
"""


AXES_HEAD = """\
# Every method on the axes of the algebra

Written by `python docs/generate.py`, and by `saltus methods --table --markdown`; do not edit. Nothing here is
typed: each method's function is called, and what it returns is read. [Methods](methods.md) has the equations,
[Notation](../NOTATION.md) what the axes are.

"""


def learns(card: Card) -> str:
    """The object that the method trains, as a formula."""
    if card.sampler is Sampler.ODE:
        return "$b_t$"
    if card.two_times:
        return "$X_{s,t}$"
    return "$X_{s,1}$" if card.sampler is Sampler.RENOISE else "$X_{0,t}$"


def needs(card: Card) -> str:
    """What the method needs, in the order of the enumeration."""
    return ", ".join(n.value for n in Need if n in card.needs)


def steps(card: Card) -> str:
    """The step counts at which it may be sampled."""
    return " ".join(map(str, card.steps))


def overview(methods: Mapping[str, Method], link: str = "") -> str:
    """One line a method; names link to their section of the page ``link``."""
    rows = []
    for name, method in methods.items():
        card = method.card
        what = [card.paper, learns(card), needs(card), card.sampler.value, steps(card), restored(name)]
        mark = " †" if card.second_hand else ""
        rows.append([f"[`{name}`]({link}#{name}){mark}", *what, f"{card.cost.evaluations:g}"])
    head = ["method", "paper", LEARNS, "needs", "sampler", "steps", "restores", "evaluations"]
    return Table(head, rows, left=frozenset(head[1:7])).markdown() + f"\n\n{MARKS}"


def section(name: str, method: Method) -> str:
    """Everything that is known of one method: its card, and its module's docstring as it stands."""
    card = method.card
    bound = "printed, not bounded" if card.threshold is None else f"below {card.threshold:g}"
    facts = [
        f"- Paper: {card.paper}",
        f"- Learns {learns(card)}; needs {needs(card) or 'nothing'}",
        f"- Sampled by {card.sampler.value} with {steps(card)} steps",
        f"- Costs {card.cost.evaluations:g} evaluations a training step; restores {restored(name)}",
        f"- Map error on the reference mixture: {bound}",
        *([f"- Bias: {card.bias}"] if card.bias else []),
        *(f"- Not from a primary source: {s}" for s in card.second_hand),
    ]
    if isinstance(method.build, partial):
        options = ", ".join(f"{k}={v}" for k, v in method.build.keywords.items())
        own = method.build.func.__name__
        return f"## {name}\n\n[`{own}`](#{own}) with `{options}`.\n"
    text = inspect.getdoc(inspect.getmodule(method.build)) or ""
    return "\n".join(
        [f"## {name}", "", f"**{card.title}**", "", *facts, "", "```text", text.strip(), "```", ""]
    )


def page(methods: Mapping[str, Method]) -> str:
    """docs/methods.md."""
    sections = (section(name, method) for name, method in methods.items())
    return "\n".join([HEAD, overview(methods), "", *sections])


def quoted(table: Table) -> Table:
    """The same with names of methods that link to their sections."""
    rows: list[list[Cell]] = [[f"[`{r[0]}`](methods.md#{r[0]})" if r[0] else "", *r[1:]] for r in table.rows]
    return replace(table, rows=rows)


def axes_page(methods: Mapping[str, Method]) -> str:
    """docs/table.md."""
    on_axes, facts = quoted(axes_table(methods)).markdown(), quoted(facts_table(methods)).markdown()
    return f"{AXES_HEAD}{AXES_NOTE}\n\n{on_axes}\n\n## Facts\n\n{FACTS_NOTE}\n\n{facts}\n"


def sizes() -> str:
    """One line a size of a network: what it is counted for, and its parameters, in millions."""
    rows: list[list[Cell]] = []
    for name, kind in BACKBONES.items():
        for size in kind.SIZES:
            full = f"{name} {size}"
            shape = SEEN.get(full, SEEN.get(name, SMALL))
            classes = CLASSES if shape in (LATENT, LARGE) else None
            with torch.device("meta"):
                count = parameter_count(build(name, size, shape, classes))
            seen = " x ".join(map(str, shape)) + (f", {classes:,} classes" if classes else "")
            printed = f"{PUBLISHED[full]:g}" if full in PUBLISHED else ""
            rows.append([f"`{name}`", f"`{size}`", seen, f"{count / 1e6:.4g}", printed])
    head = ["network", "size", "for", "million parameters", "in print"]
    return Table(head, rows, left=frozenset(head[:3])).markdown()


def markers(subject: str) -> tuple[str, str]:
    """What stands before and behind a generated part of a page."""
    return f"<!-- {subject}: written by docs/generate.py -->", f"<!-- end of {subject} -->"


def with_table(page: str, table: str, subject: str) -> str:
    """The page with the text between the subject's two markers replaced."""
    begin, end = markers(subject)
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"page: expected the markers {begin!r} and {end!r}, found none; put them back")
    return pattern.sub(lambda _: f"{begin}\n\n{table}\n\n{end}", page)


def documents() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    methods = discover()
    readme, networks = ROOT / "README.md", ROOT / "docs" / "networks.md"
    return {
        ROOT / "docs" / "methods.md": page(methods),
        ROOT / "docs" / "table.md": axes_page(methods),
        readme: with_table(readme.read_text(), overview(methods, "docs/methods.md"), "methods"),
        networks: with_table(networks.read_text(), sizes(), "sizes"),
    }


def stale() -> list[str]:
    """The generated files that are not what they should be."""
    wanted = documents().items()
    return [str(p.relative_to(ROOT)) for p, text in wanted if not p.exists() or p.read_text() != text]


def main(args: list[str]) -> int:
    """Write, or check with ``--check``; the exit status."""
    old = stale()
    if "--check" in args:
        print(f"not current: {', '.join(old)}; run: make docs" if old else "generated documents are current")
        return int(bool(old))
    for path, text in documents().items():
        path.write_text(text)
    print(f"written: {', '.join(old) or 'nothing changed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
