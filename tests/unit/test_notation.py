"""The formulas and conversions of NOTATION.md on N(mu, sigma^2) data, whose flow map is known.

With the linear interpolant, S(t)^2 = (1 - t)^2 + t^2 sigma^2, the map is
X_{s,t}(x) = t mu + (S(t)/S(s))(x - s mu). The sources' quantities are written in their own time here,
from their own definitions, with nothing of saltus, and then converted as the page says.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

MU, SIGMA = 0.7, 0.4
S, M, T, X = 0.2, 0.45, 0.8, 1.3
Fn = Callable[[float], float]


def spread(t: float) -> float:
    return math.hypot(1.0 - t, t * SIGMA)


def jump(s: float, t: float, x: float) -> float:
    return t * MU + spread(t) / spread(s) * (x - s * MU)


def average(s: float, t: float, x: float) -> float:
    return (jump(s, t, x) - x) / (t - s)


def b(t: float, x: float) -> float:
    """E[x1 - x0 | x_t = x] by regression: mu + Cov(x1 - x0, x_t)/Var(x_t) (x - t mu)."""
    return MU + (t * SIGMA**2 - (1.0 - t)) / spread(t) ** 2 * (x - t * MU)


def denoised(a: float, sigma: float, y: float) -> float:
    """E[x1 | a x1 + sigma eps = y], the definition that every diffusion paper shares."""
    return MU + a * SIGMA**2 / (a**2 * SIGMA**2 + sigma**2) * (y - a * MU)


def slope(f: Fn, t: float, d: float = 1e-4) -> float:
    """A fourth-order central difference."""
    return (8.0 * (f(t + d) - f(t - d)) - (f(t + 2 * d) - f(t - 2 * d))) / (12.0 * d)


def close(a: float, c: float) -> bool:
    return math.isclose(a, c, rel_tol=1e-9, abs_tol=1e-9)


def test_characterisations() -> None:
    h, u = T - S, average(S, T, X)
    assert close(u + h * slope(lambda t: average(S, t, X), T), b(T, jump(S, T, X)))
    advective = slope(lambda s: average(s, T, X), S) + slope(lambda x: average(S, T, x), X) * b(S, X)
    assert close(u, b(S, X) + h * advective)
    gamma = (M - S) / (T - S)
    assert close(u, gamma * average(S, M, X) + (1 - gamma) * average(M, T, jump(S, M, X)))


@pytest.mark.parametrize("near", ["start", "end"])
def test_finite_step_is_first_order(near: str) -> None:
    def error(d: float) -> float:
        h, u = T - S, average(S, T, X)
        if near == "start":
            after = average(S + d, T, X + d * b(S, X))
            return b(S, X) + (h - d) * (after - u) / d - u
        short = average(S, T - d, X)
        return b(T - d, jump(S, T - d, X)) - (h - d) * (u - short) / d - u

    assert abs(error(1e-3)) < 0.01
    assert 1.9 < error(1e-3) / error(5e-4) < 2.1


def test_linear_predictions() -> None:
    v = b(T, X)
    x1, x0 = X + (1 - T) * v, X - T * v
    assert close(x1, denoised(T, 1 - T, X))
    assert close((1 - T) * x0 + T * x1, X)
    score = -(X - T * MU) / spread(T) ** 2
    assert close((T * v - X) / (1 - T), score)
    assert close(-x0 / (1 - T), score)


def test_mean_flow() -> None:
    """Their identity u' = v' - (t' - r) (d/dt') u' along the flow, solved by u' = -u."""

    def theirs(z: float, r: float, t: float) -> float:
        return -average(1 - t, 1 - r, z)

    r, t = 1 - T, 1 - S
    velocity = denoised_noise(1 - t, t, X) - denoised(1 - t, t, X)  # E[eps - x | z]
    total = slope(lambda q: theirs(X, r, q), t) + slope(lambda z: theirs(z, r, t), X) * velocity
    assert close(theirs(X, r, t), velocity - (t - r) * total)
    assert close(X - (t - r) * theirs(X, r, t), jump(S, T, X))
    assert close(velocity, -b(S, X))


def denoised_noise(a: float, sigma: float, y: float) -> float:
    """E[eps | a x1 + sigma eps = y]."""
    return (y - a * denoised(a, sigma, y)) / sigma


def test_free_flow() -> None:
    """Their identity F + delta d_delta F = u(f, 1 - delta), u = E[x - n | .] at their time 1 - delta."""
    delta = T

    def big_f(d: float) -> float:
        return average(0.0, d, X)

    f = X + delta * big_f(delta)
    tau = 1 - delta
    u = denoised(1 - tau, tau, f) - denoised_noise(1 - tau, tau, f)
    assert close(big_f(delta) + delta * slope(big_f, delta), u)
    assert close(u, b(delta, f))


def test_trig_flow() -> None:
    """dx/dtau = sigma_d F' = E[cos(tau) z - sin(tau) x1 | x] in tau; b = -(pi/2) sigma_d F' in t."""
    t = T
    tau = math.pi / 2 * (1 - t)
    data, noise = denoised(math.cos(tau), math.sin(tau), X), denoised_noise(math.cos(tau), math.sin(tau), X)
    theirs = math.cos(tau) * noise - math.sin(tau) * data
    rate = math.pi / 2
    ours = -rate * math.sin(rate * t) * noise + rate * math.cos(rate * t) * data
    assert close(ours, -rate * theirs)


def test_edm() -> None:
    sigma = (1 - T) / T
    assert close(T, 1 / (1 + sigma))
    y = X / T
    assert close((denoised(1.0, sigma, y) - X) / (1 - T), b(T, X))


def test_variance_preserving() -> None:
    a = 0.6
    sigma = math.sqrt(1 - a * a)
    y = 0.9
    t, x = a / (a + sigma), y / (a + sigma)
    assert close((x - denoised_noise(a, sigma, y)) / t, b(t, x))
