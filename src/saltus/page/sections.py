"""The parts of a run's page; each is absent where the run has nothing for it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from saltus.page.axes import brief, clock, fixed
from saltus.page.chart import Chart, Line, drawn
from saltus.page.curves import Curve
from saltus.page.fields import heat, plane
from saltus.page.files import PAGE, Picture, RunFiles
from saltus.page.markup import Markup, joined, tag
from saltus.page.results import OWN, by_count, over_training, table

__all__ = ["gallery", "header", "printed", "said", "section", "sections"]

TOGETHER = 6
"""Lines in one chart, at the most."""


def section(title: str, *parts: str, note: str = "") -> Markup:
    """Parts under a heading."""
    said = tag("p", {"class": "note"}, note) if note else ""
    return tag("section", {}, tag("h2", {}, title), said, *parts)


def gallery(figures: Sequence[Markup], kind: str = "charts") -> Markup:
    """Figures side by side where there is room, as many in a line as leave none alone."""
    many = " two" if len(figures) in (1, 2, 4) else " five" if len(figures) in (5, 10) else ""
    return tag("div", {"class": kind + many}, *figures)


def sections(run: RunFiles) -> list[Markup]:
    """All parts that the run has something for."""
    parts = (_samples(run), _results(run), _training(run), _planes(run), _residuals(run), _teacher(run))
    return [*(p for p in (*parts, *_listings(run)) if p)]


# -- the head of the page


def _fact(name: str, value: str, unit: str = "") -> Markup:
    small = tag("small", {}, " ", unit) if unit else ""
    return tag("div", {}, tag("dt", {}, name), tag("dd", {}, value, small))


def _facts(run: RunFiles) -> Markup:
    """The few numbers that say most."""
    h, total = run.history, run.steps
    facts = []
    if h.step or total:
        whole = f"of {total:,}" if total and total != h.step else ""
        facts.append(_fact("steps", f"{h.step:,}", whole))
    if h.left_out:
        facts.append(_fact("skipped", f"{h.left_out:,}", "not finite"))
    if h.seconds:
        facts.append(_fact("trained for", clock(h.seconds)))
    if run.state.training and total and h.pace:
        facts.append(_fact("left", clock(max(0, total - h.step) / h.pace)))
    if h.speed is not None:
        facts.append(_fact("rate", brief(float(f"{h.speed.y[-1]:.3g}")), "samples/s"))
    own = [m for m in run.final.lines if m.group == OWN] if run.final else []
    if own:
        name, value = next(iter(own[0].figures.items()))
        facts.append(_fact(f"{name}, {own[0].label}", fixed(value)))
    elif h.loss is not None:
        facts.append(_fact("loss", fixed(h.loss)))
    return tag("dl", {"class": "facts"}, *facts) if facts else Markup("")


def _status(run: RunFiles) -> Markup:
    state, now = run.state, time.time()
    word = "finished" if state.finished else "training" if state.training else "stopped"
    total = run.steps
    if not (state.finished or state.training) and total and run.history.step:
        word += f" at {100 * run.history.step / total:.0f} %"
    if not (state.finished or state.training) and not run.history.step:
        word = "not begun"
    kind = "finished" if state.finished else "training" if state.training else "stopped"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    stamp = tag("time", {"data-at": f"{now:.0f}"}, when)
    written = tag("span", {"class": "when"}, "written ", stamp)
    return joined(tag("span", {"class": f"status {kind}"}, word), written)


def header(run: RunFiles) -> Markup:
    """Title, what was trained, whether it goes on, and the few numbers that say most."""
    o, training = run.options, run.group.get("training", {})
    network = run.group.get("network", {})
    seed = training.get("seed")
    words = [
        str(run.folder.resolve().name) if run.folder.resolve().name != run.title else "",
        " ".join(str(network[k]) for k in ("backbone", "size") if network.get(k)),
        f"batches of {run.batch:,}" if run.batch else "",
        "" if seed is None else f"seed {seed}",
        f"taught by {o['teacher']}" if o.get("teacher") else "",
    ]
    under = tag("p", {"class": "under"}, " · ".join(w for w in words if w))
    bar: str = ""
    if run.state.training and run.steps:
        part = 100.0 * min(1.0, run.history.step / run.steps)
        bar = tag("div", {"class": "bar"}, tag("i", {"style": f"width:{part:.1f}%"}))
    notes = [tag("p", {"class": "warning"}, n) for n in run.notes[:8]]
    top = tag("div", {"class": "top"}, tag("h1", {}, run.title), _status(run))
    return tag("header", {}, top, under, bar, _facts(run), *notes)


# -- results


def printed(picture: Picture) -> Markup:
    """A picture on white paper."""
    size: dict[str, str | int] = {"width": picture.width, "height": picture.height}
    # as wide as the page, but on a phone not so small that nothing is seen: there it scrolls
    size |= {"style": f"width:min({picture.width}px, max(100%, 620px))"}
    image = tag("img", {"src": Markup(picture.uri), "alt": picture.name, **size})
    return tag("div", {"class": "print", "tabindex": 0}, image)


def _after(step: int | None) -> str:
    return "" if step is None else f"after {step:,} steps"


def _grids(grids: Sequence[Picture]) -> Markup:
    """Pictures over training under a slider; the last one is shown first."""
    last = len(grids) - 1
    shown = [
        tag(
            "div",
            {"class": "frame", "data-said": _after(g.step)} | ({} if k == last else {"hidden": ""}),
            printed(g),
        )
        for k, g in enumerate(grids)
    ]
    said = tag("output", {}, _after(grids[-1].step))
    slide: dict[str, str | int] = {
        "type": "range",
        "min": 0,
        "max": last,
        "value": last,
        "aria-label": "training step",
    }
    control = tag("div", {"class": "slide"}, tag("input", slide), said) if last else said
    return tag("div", {"class": "grids"}, control, *shown)


def _samples(run: RunFiles) -> Markup:
    parts = [_grids(run.grids)] if run.grids else []
    for name in ("samples.png", "points.png"):
        if name in run.pictures:
            parts.append(printed(run.pictures[name]))
    return section("Samples", *parts) if parts else Markup("")


def _results(run: RunFiles) -> Markup:
    over = over_training(run)
    charts = over or (by_count(run.final.lines) if run.final else [])
    if run.final is None:
        return Markup("")
    told = [_after(run.final.step), run.final.weights and f"weights: {run.final.weights}"]
    note = ", ".join(w for w in told if w)
    others = []
    for e in run.evaluations:  # other weights at the last step that was evaluated
        if e.step == run.evaluations[-1].step and e.weights != run.final.weights and run.final.weights:
            others.append(tag("h3", {}, f"weights: {e.weights}"))
            others.append(table(e))
    shown = gallery(charts) if charts else ""
    return section("Figures", shown, table(run.final), *others, note=note)


# -- training


def _players(
    curves: Mapping[str, Curve], title: str, marks: Sequence[tuple[str, float]], plain: bool = False
) -> Markup:
    """A number of every player in one chart, one line if all agree; a plain one from zero, not smoothed."""
    found = [(who, c) for who, c in curves.items() if len(c)][:TOGETHER]
    if not found:
        return Markup("")
    first = found[0][1]
    same = all(len(c) == len(first) and bool((c.y == first.y).all()) for _, c in found)
    kept = [("", first)] if same else found
    lines = [Line(who, c, k, not plain) for k, (who, c) in enumerate(kept)]
    return drawn(Chart(title, lines, zero=plain, marks=marks))


def _training(run: RunFiles) -> Markup:
    """The terms of the loss of every player, the learning rate, gradients, and the rate."""
    h = run.history
    marks = [(name, float(first)) for name, first in h.stages] if len(h.stages) > 1 else []
    charts = []
    for who, terms in h.terms.items():
        found = list(terms.items())
        for k in range(0, len(found), TOGETHER):
            lines = [Line(name, c, i, True) for i, (name, c) in enumerate(found[k : k + TOGETHER])]
            title = f"Loss of {who}" if who else "Loss"
            charts.append(drawn(Chart(title, lines, marks=marks)))
    charts += [_players(h.norms, "Gradient norm", marks), _players(h.rates, "Learning rate", marks, True)]
    if h.speed is not None:
        charts.append(drawn(Chart("Samples a second", [Line("", h.speed, 0, True)], zero=True, marks=marks)))
    charts = [c for c in charts if c]
    return section("Training", gallery(charts)) if charts else Markup("")


# -- fields


def _planes(run: RunFiles) -> Markup:
    if not run.planes:
        return Markup("")
    note = "From the noise (hollow) along the jumps to the sample (filled)."
    told = _after(run.plane_step)
    if told:
        note += f" {told.capitalize()}."
    return section("Trajectories", gallery([plane(p) for p in run.planes], "fields planes"), note=note)


def _residuals(run: RunFiles) -> Markup:
    if run.heats:
        shown = gallery([heat(h) for h in run.heats], "fields")
        note = "How far the map is from agreeing with itself between the times s ≤ t; zero is exact."
        told = _after(run.field_step)
        return section("Residuals", shown, note=f"{note} {told.capitalize()}." if told else note)
    picture = run.pictures.get("residuals.png")
    return section("Residuals", printed(picture)) if picture else Markup("")


# -- what was asked for, and where


def _teacher(run: RunFiles) -> Markup:
    """The run of its own teacher, in a line."""
    t = run.teacher
    if t is None:
        return Markup("")
    state = "finished" if t.state.finished else f"{t.history.step:,} steps so far"
    words = [state] + ([f"trained for {clock(t.history.seconds)}"] if t.history.seconds else [])
    there = (t.folder / PAGE).is_file()
    name = tag("a", {"href": f"teacher/{PAGE}"}, t.title) if there else t.title
    return section("Teacher", tag("p", {}, joined(name, ": ", ", ".join(words))))


def said(value: object) -> str:
    """An option as a reader writes it.

    >>> said(None), said(True), said(0.001), said([1, 2]), said("a")
    ('–', 'yes', '0.001', '1 2', 'a')
    """
    if value is None or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and abs(value) < 10**15 else f"{value:.6g}"
    if isinstance(value, str):
        return value[:2000]
    if isinstance(value, list):
        return " ".join(said(v) for v in value[:50])
    return json.dumps(value, ensure_ascii=False)[:2000]


def _pairs(title: str, fields: Mapping[str, Any]) -> Markup:
    """Names and values under a small heading."""
    rows = (
        tag("div", {}, tag("dt", {}, name.replace("_", " ")), tag("dd", {}, said(value)))
        for name, value in fields.items()
    )
    head = tag("h3", {}, title) if title else ""
    return tag("div", {"class": "group"}, head, tag("dl", {}, *rows))


def _listings(run: RunFiles) -> list[Markup]:
    found = []
    alone = {k: v for k, v in run.options.items() if not isinstance(v, dict)}
    groups = {k: v for k, v in ({"run": alone} | run.group).items() if v}
    if groups:
        again = tag(
            "p", {"class": "note"}, "Again: ", tag("code", {}, f"saltus run {run.folder}/options.json")
        )
        shown = gallery([_pairs(title, fields) for title, fields in groups.items()], "groups")
        found.append(section("Options", shown, again))
    if run.environment:
        found.append(section("Environment", gallery([_pairs("", run.environment)], "groups wide")))
    return found
