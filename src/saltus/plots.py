"""Pictures of samples and results.

Image grids and densities need Pillow alone; :func:`scatter`, :func:`lines` and :func:`heat` draw with
matplotlib, which comes with ``pip install 'saltus[plots]'`` and is imported when they are called.
Nothing here changes matplotlib's global state: every figure is built as an object and saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Dots",
    "Row",
    "Series",
    "check_matplotlib",
    "density",
    "dots",
    "heat",
    "lines",
    "rows",
    "scatter",
    "tiles",
]

T = TypeVar("T")

INK, PAPER, FAINT = (34, 34, 40), (255, 255, 255), (120, 120, 130)
PALETTE = ("#1f5fa8", "#d1495b", "#2a9d72", "#b8860b", "#7b4ea3", "#4d7c8a", "#8c564b", "#5f6368")
_DARK_TO_LIGHT = ((0.0, (255, 255, 255)), (0.15, (208, 225, 242)), (0.5, (66, 130, 190)), (1.0, (8, 40, 92)))


@dataclass(frozen=True)
class Row:
    """One labelled row of images: pictures [n, C, H, W] or [n, H, W] in [-1, 1], C = 1 or 3."""

    label: str
    images: Tensor


@dataclass(frozen=True)
class Series:
    """One line of a plot: label, abscissae, ordinates, and whether it is a mere reference."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    reference: bool = False


@dataclass(frozen=True)
class Dots:
    """One line of a dot plot: its label, a value for each name of a colour, and a limit or None."""

    label: str
    values: Mapping[str, float]
    limit: float | None = None


def pixels(images: Tensor, scale: int) -> np.ndarray:
    """Pictures [n, C, H, W] or [n, H, W] in [-1, 1] as bytes [n, scale H, scale W, 3], enlarged by
    repeating pixels, so that an 8 x 8 digit stays exactly what the network drew."""
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images: expected [n, H, W] or [n, C, H, W] with C = 1 or 3, got {list(images.shape)}; "
            "reshape the samples"
        )
    levels = ((images.detach().float().cpu() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    levels = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return np.asarray(levels.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2).numpy())


def _font(size: int) -> Any:  # noqa: ANN401 - Pillow returns one of two font classes
    return ImageFont.load_default(size=size)


def _fit(height: int) -> int:
    """The factor that shows a picture of this height at some 48 pixels or more."""
    return max(1, round(48 / height))


def _paste(canvas: Image.Image, row: np.ndarray, left: int, top: int, gap: int) -> None:
    for k, picture in enumerate(row):
        canvas.paste(Image.fromarray(picture), (left + k * (picture.shape[1] + gap), top))


def tiles(images: Tensor, columns: int = 8, scale: int | None = None, gap: int = 4) -> Image.Image:
    """A plain grid of pictures (see :class:`Row` for their shape).

    >>> tiles(torch.zeros(10, 1, 8, 8), columns=5, scale=2, gap=1).size
    (86, 35)
    """
    factor = scale or _fit(images.shape[-2])
    bytes_ = pixels(images, factor)
    n, high, wide = bytes_.shape[:3]
    columns = min(columns, n)
    lines_ = -(-n // columns)
    canvas = Image.new("RGB", (columns * (wide + gap) + gap, lines_ * (high + gap) + gap), PAPER)
    for k in range(lines_):
        _paste(canvas, bytes_[k * columns : (k + 1) * columns], gap, gap + k * (high + gap), gap)
    return canvas


def rows(
    parts: Sequence[Row], title: str = "", columns: Sequence[str] = (), scale: int | None = None, gap: int = 4
) -> Image.Image:
    """Labelled rows of pictures under a title, with an optional heading for every column.

    >>> row = Row("one step", torch.zeros(3, 1, 8, 8))
    >>> rows([row, row], title="digits", columns=["0", "1", "2"]).height > 128
    True
    """
    factor = scale or _fit(parts[0].images.shape[-2])
    drawn = [pixels(p.images, factor) for p in parts]
    high, wide = drawn[0].shape[1:3]
    label, head = _font(17), _font(20)
    left = 26 + max(round(label.getlength(p.label)) for p in parts)
    top = (46 if title else 12) + (26 if columns else 0)
    width = left + max(len(d) for d in drawn) * (wide + gap) + 12
    width = max(width, round(head.getlength(title)) + 28)
    canvas = Image.new("RGB", (width, top + len(parts) * (high + gap) + 10), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((14, 12), title, INK, font=head)
    for k, text in enumerate(columns):
        middle = left + k * (wide + gap) + wide / 2
        pen.text((middle, top - 13), text, FAINT, font=label, anchor="mm")
    for k, (part, row) in enumerate(zip(parts, drawn, strict=True)):
        y = top + k * (high + gap)
        pen.text((left - 14, y + high / 2), part.label, INK, font=label, anchor="rm")
        _paste(canvas, row, left, y, gap)
    return canvas


def density(points: Tensor, reach: float, bins: int = 96) -> Tensor:
    """A histogram of points [n, 2] on [-reach, reach]^2 as a picture [3, bins, bins] in [-1, 1].

    The first coordinate runs to the right and the second upwards; the scale is the square root of
    the count, white where there is nothing.
    """
    xy = points.detach().double().cpu().numpy()
    counts, _, _ = np.histogram2d(xy[:, 0], xy[:, 1], bins=bins, range=[[-reach, reach]] * 2)
    level = np.sqrt(counts / max(np.quantile(counts[counts > 0], 0.98), 1.0)) if counts.any() else counts
    stops = [s for s, _ in _DARK_TO_LIGHT]
    colour = np.stack(
        [np.interp(level.clip(0, 1), stops, [c[k] for _, c in _DARK_TO_LIGHT]) for k in range(3)]
    )
    return torch.from_numpy(colour[:, :, ::-1].transpose(0, 2, 1).copy()).float() / 127.5 - 1.0


def check_matplotlib() -> None:
    """Raise a ValueError that says how to install it, before anything is measured that would be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as missing:
        raise ValueError(
            "this picture needs matplotlib, which is not installed; pip install 'saltus[plots]'"
        ) from missing


def _figure(width: float, height: float) -> Figure:
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _panels(figure: Figure, panels: Mapping[str, T]) -> Iterator[tuple[Any, tuple[str, T]]]:
    """Axes side by side, each with the name and the content of its panel."""
    return zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True)


def _tidy(axes: Any) -> None:  # noqa: ANN401 - matplotlib has no types
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, color="#e6e6ea", linewidth=0.7)
    axes.set_axisbelow(True)


def _logarithmic(axis: Any) -> None:  # noqa: ANN401 - matplotlib has no types
    """Ticks of a logarithmic axis, plain numbers at 1, 2 and 5 of every decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.set_minor_formatter(NullFormatter())


def scatter(
    panels: Mapping[str, Tensor],
    reach: float,
    path: Path | BinaryIO,
    title: str = "",
    trajectories: Mapping[str, Tensor] | None = None,
) -> None:
    """Points [n, 2] side by side, one panel a name, all on [-reach, reach]^2; into a file, open or not.

    ``trajectories`` holds, for some of the panels, paths [k + 1, m, 2] of m samples through k steps,
    drawn from the prior (hollow) to where they end (filled).
    """
    figure = _figure(2.6 * len(panels), 2.95 if title else 2.7)
    for axes, (name, points) in _panels(figure, panels):
        xy = points.detach().cpu().numpy()
        axes.scatter(xy[:, 0], xy[:, 1], s=1.6, alpha=0.5, linewidths=0, color=PALETTE[0])
        way = (trajectories or {}).get(name)
        if way is not None:
            w = way.detach().cpu().numpy()
            axes.plot(w[:, :, 0], w[:, :, 1], color=PALETTE[1], linewidth=0.9, alpha=0.85)
            dots = {"s": 9, "edgecolors": PALETTE[1], "linewidths": 0.8, "zorder": 3}
            axes.scatter(w[0, :, 0], w[0, :, 1], facecolors="white", **dots)
            axes.scatter(w[-1, :, 0], w[-1, :, 1], facecolors=PALETTE[1], **dots)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        axes.set_title(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def lines(
    panels: Mapping[str, Sequence[Series]],
    path: Path,
    xlabel: str,
    title: str = "",
    logarithmic: bool = True,
    doubling: bool = False,
) -> None:
    """Line plots side by side: panel name (also its y label) -> series, one shared legend.

    ``doubling`` draws the abscissa on a base-two scale with a tick at each value, for step counts;
    references are dashed and grey.
    """
    figure = _figure(max(4.6, 3.7 * len(panels)), 3.5)
    seen: dict[str, Any] = {}
    for axes, (name, series) in _panels(figure, panels):
        for k, line in enumerate(series):
            style: dict[str, Any] = {"color": PALETTE[k % len(PALETTE)], "linewidth": 1.5, "markersize": 4}
            style |= {"color": "#8a8a94", "linestyle": "--"} if line.reference else {}
            style |= {"marker": "o"} if doubling and not line.reference else {}
            seen.setdefault(line.label, axes.plot(line.x, line.y, **style)[0])
        if logarithmic and all(y > 0 for line in series for y in line.y):
            axes.set_yscale("log")
            _logarithmic(axes.yaxis)
        if doubling:
            ticks = sorted({x for line in series for x in line.x})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
        axes.set_xlabel(xlabel)
        axes.set_title(name, fontsize=10)
        _tidy(axes)
    widest = 0.55 + 0.08 * max(map(len, seen), default=0)  # inches of one entry: its line and its letters
    columns = max(1, min(4, len(seen), int(figure.get_figwidth() / widest)))
    legend = figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=columns)
    legend.set_frame_on(False)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def heat(panels: Mapping[str, Tensor], times: Tensor, path: Path, title: str) -> None:
    """Residuals [n, n] side by side, over s (upwards) and t (across), both at ``times`` [n]; NaN cells
    stay blank. Every panel has its own scale."""
    figure = _figure(3.5 * len(panels), 3.3)
    ticks = times.detach().cpu().numpy()
    for axes, (name, values) in _panels(figure, panels):
        cells = values.detach().cpu().numpy()
        mesh = axes.pcolormesh(ticks, ticks, cells, cmap="magma_r", vmin=0.0, shading="nearest")
        figure.colorbar(mesh, ax=axes, shrink=0.8)
        axes.set(xlabel="t", ylabel="s", aspect="equal")
        axes.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def dots(panels: Mapping[str, Sequence[Dots]], path: Path, legend: str, title: str = "") -> None:
    """Dot plots side by side: many labels from top to bottom, in the order of their first value, and a
    logarithmic abscissa. A tick marks a limit; ``legend`` says what the colours are."""
    longest = max(len(drawn) for drawn in panels.values())
    figure = _figure(4.6 * len(panels), 1.2 + 0.19 * longest)
    seen: dict[str, Any] = {}
    for axes, (name, drawn) in _panels(figure, panels):
        ordered = sorted(drawn, key=lambda d: next(iter(d.values.values())), reverse=True)
        colours = list(dict.fromkeys(key for d in drawn for key in d.values))
        for k, colour in enumerate(colours):
            points = [(d.values[colour], y) for y, d in enumerate(ordered) if colour in d.values]
            style = {"s": 18, "color": PALETTE[k % len(PALETTE)], "zorder": 3, "linewidths": 0}
            seen.setdefault(colour, axes.scatter(*zip(*points, strict=True), **style))
        limits = [(d.limit, y) for y, d in enumerate(ordered) if d.limit is not None]
        if limits:
            style = {"s": 60, "marker": "|", "color": "#8a8a94"}
            seen.setdefault("at most", axes.scatter(*zip(*limits, strict=True), **style))
        axes.set_xscale("log")
        _logarithmic(axes.xaxis)
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.set_yticks(range(len(ordered)), [d.label for d in ordered], fontsize=7)
        axes.set_title(name, fontsize=10)
        _tidy(axes)
    key = figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=len(seen), title=legend)
    key.set_frame_on(False)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path)
