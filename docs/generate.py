"""Write the documents that follow from the cards of the methods: docs/methods.md and README's table.

``python docs/generate.py`` rewrites them (also ``make docs``); ``--check`` only says whether they are
current, and exits with status 1 if not.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from saltus.methods import Card, Method, Need, Sampler, discover
from saltus.report import Table

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- methods: written by docs/generate.py -->", "<!-- end of methods -->"

LEARNS = "learns"
HEAD = """\
# Methods

Written by `python docs/generate.py` from the cards and docstrings in `src/saltus/methods/`; do not edit.

Evaluations are the network calls of the forward pass of one training step for each row of the batch, counted
as the papers do: a call together with its derivative is 1.5. What a step takes is measured by
`benchmarks/step_time.py`. Map errors are one-step root mean squared distances to the exact flow map of the
reference mixture, squared error, mean of three seeds; a method must stay below its bound.
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
        what = [card.paper, learns(card), needs(card), card.sampler.value, steps(card)]
        rows.append([f"[`{name}`]({link}#{name})", *what, f"{card.cost.evaluations:g}"])
    head = ["method", "paper", LEARNS, "needs", "sampler", "steps", "evaluations"]
    return Table(head, rows, left=frozenset(head[1:6])).markdown()


def section(name: str, method: Method) -> str:
    """Everything that is known of one method: its card, and its module's docstring as it stands."""
    card = method.card
    bound = "printed, not bounded" if card.threshold is None else f"below {card.threshold:g}"
    facts = [
        f"- Paper: {card.paper}",
        f"- Learns {learns(card)}; needs {needs(card) or 'nothing'}",
        f"- Sampled by {card.sampler.value} with {steps(card)} steps",
        f"- Costs {card.cost.evaluations:g} evaluations a training step",
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


def with_table(readme: str, table: str) -> str:
    """The README with the text between the two markers replaced."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"README.md: expected the markers {BEGIN!r} and {END!r}, found none; put them back")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{table}\n\n{END}", readme)


def documents() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    methods = discover()
    readme = ROOT / "README.md"
    return {
        ROOT / "docs" / "methods.md": page(methods),
        readme: with_table(readme.read_text(), overview(methods, "docs/methods.md")),
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
