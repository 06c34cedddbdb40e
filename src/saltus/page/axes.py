"""Axes: where a number lies, which ticks it has, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Axis",
    "Floats",
    "brief",
    "clock",
    "doubling",
    "fixed",
    "linear",
    "logarithmic",
    "number",
    "steps",
    "suited",
]

Floats = NDArray[np.float64]

SPAN = 6.0
"""A ratio of the largest to the smallest value from which a logarithmic axis shows more."""
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """An interval with ticks.

    Attributes:
        low: its lower end, on a logarithmic axis above zero.
        high: its upper end, above ``low``.
        ticks: where a number stands, and how it is written.
        log: whether equal ratios are equally far apart.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, values: Floats) -> Floats:
        """Values as parts of the way from ``low`` (0) to ``high`` (1).

        >>> logarithmic(1.0, 100.0).at(np.array([1.0, 10.0, 100.0])).round(3)
        array([0. , 0.5, 1. ])
        """
        if self.log:
            first, last = math.log(self.low), math.log(self.high)  # a ratio may be too large for a float
            return (np.log(np.maximum(values, 1e-300)) - first) / (last - first)
        return (values - self.low) / (self.high - self.low)


def _step(span: float) -> float:
    """The one of 1, 2, 2.5, 5, 10, ... that makes about four parts of a span."""
    power = 10.0 ** math.floor(math.log10(span / 4.0))
    return min((m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0)), key=lambda s: abs(math.log(span / s / 4.0)))


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def linear(low: float, high: float) -> Axis:
    """An axis whose ends are round ticks.

    >>> linear(0.0, 0.87).ticks
    ((0.0, '0'), (0.2, '0.2'), (0.4, '0.4'), (0.6000000000000001, '0.6'), (0.8, '0.8'), (1.0, '1'))
    """
    if not high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        wide = 0.5 * abs(low) or 0.5
        low, high = low - wide, high + wide
    step = _step(high - low)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(low, high, tuple((v, _ticked(v)) for v in _multiples(low, high, step)))


def _ticked(value: float) -> str:
    """A number beside a tick, where there is room for some five signs."""
    return brief(value) if 1e4 <= value < 1e12 else number(value, 5)


def steps(low: float, high: float) -> Axis:
    """The axis of training steps, written shortly.

    >>> steps(0, 600).ticks
    ((0, '0'), (200, '200'), (400, '400'), (600, '600'))
    """
    if not high > low:
        low, high = max(0.0, low - 1.0), high + 1.0
    step = max(1.0, math.ceil(_step(high - low)))
    return Axis(low, high, tuple((v, brief(v)) for v in _multiples(low, high, step)))


def logarithmic(low: float, high: float) -> Axis:
    """A logarithmic axis: ticks at decades, or at 1, 2 and 5 of each where there are few.

    >>> logarithmic(0.013, 4.0).ticks
    ((0.1, '0.1'), (1.0, '1'))
    >>> logarithmic(0.3, 2.5).ticks
    ((0.5, '0.5'), (1.0, '1'), (2.0, '2'))
    """
    if not high > low * (1 + 1e-9):
        low, high = low / 2.0, high * 2.0
    decades = [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high)) + 1)]
    every = max(1, -(-len(decades) // 5))
    ticks = decades[::every]
    if len(ticks) < 2:
        around = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        ticks = [m * 10.0**k for k in around for m in (1.0, 2.0, 5.0)]
        ticks = [v for v in ticks if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
    if len(ticks) < 2:
        ticks = _multiples(low, high, _step(high - low))
    return Axis(low, high, tuple((v, _ticked(v)) for v in ticks), log=True)


def doubling(values: Sequence[float]) -> Axis:
    """A logarithmic axis with a tick at each value: for numbers of sampler steps.

    >>> doubling([1, 2, 4]).ticks
    ((1, '1'), (2, '2'), (4, '4'))
    """
    found = sorted(set(values))
    return Axis(found[0] / 1.15, found[-1] * 1.15, tuple((v, number(float(v), 4)) for v in found), log=True)


def suited(values: Floats, zero: bool = False) -> Axis:
    """The axis on which values show most: logarithmic if all are positive and they span a wide ratio.

    Args:
        values: at least one, finite.
        zero: whether the axis is linear and begins at zero.
    """
    low, high = float(values.min()), float(values.max())
    if zero:
        return linear(min(0.0, low), max(high, 0.0) or 1.0)
    if low > 0.0 and high / low > SPAN:
        return logarithmic(low / 1.1, high * 1.1)
    if low > 0.0 and low < 0.4 * high:
        low = 0.0
    return linear(low, high)


def number(value: float, digits: int = 3) -> str:
    """A number of so many significant digits, as a reader writes it.

    >>> [number(v) for v in (0.0, 0.012345, 3.0, 12345.0, 2.5e7, -1e-5, 0.1)]
    ['0', '0.0123', '3', '12,345', '2.5×10⁷', '−10⁻⁵', '0.1']
    """
    if value == 0.0:
        return "0"
    sign, size = "−" if value < 0.0 else "", abs(value)
    if 1e-4 <= size < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:,.{places}f}"
        return sign + (text.rstrip("0").rstrip(".") if "." in text else text)
    mantissa, _, power = f"{size:.{min(digits, 3) - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    lead = "" if float(mantissa) == 1.0 else f"{mantissa}×"
    return f"{sign}{lead}10{str(int(power)).translate(SUPERSCRIPT)}"


def fixed(value: float) -> str:
    """A number with three significant digits, trailing zeros kept, for columns.

    >>> [fixed(v) for v in (0.5, 12.0, 1234.0, 1e-5)]
    ['0.500', '12.0', '1,234', '10⁻⁵']
    """
    size = abs(value)
    if not (1e-4 <= size < 1e6):
        return number(value)
    places = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{places}f}".replace("-", "−")


def brief(value: float) -> str:
    """A count, shortly.

    >>> [brief(v) for v in (0, 950, 2000, 12500, 3e6)]
    ['0', '950', '2k', '12.5k', '3M']
    """
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.10g}{word}"
    return f"{value:.10g}"


def clock(seconds: float) -> str:
    """A time as a reader says it.

    >>> clock(4.2), clock(75), clock(7325), clock(200000)
    ('4 s', '1 min 15 s', '2 h 2 min', '2 d 7 h')
    """
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
