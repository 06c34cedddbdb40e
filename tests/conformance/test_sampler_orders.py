"""The measured order of convergence of every ODE method is its name's, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saltus.exact import Gaussian
from saltus.interpolants import Trigonometric
from saltus.legs import DORMAND_PRINCE, EULER, HEUN, RALSTON3, RK4, Tableau, ddim
from saltus.samplers import integrate
from saltus.typing import Condition, Velocity

LOWER = Tableau(DORMAND_PRINCE.a, DORMAND_PRINCE.b_low or (), DORMAND_PRINCE.c, order=4)
TABLEAUX = {
    "euler": EULER,
    "heun": HEUN,
    "ralston3": RALSTON3,
    "rk4": RK4,
    "dormand-prince": DORMAND_PRINCE,
    "dormand-prince, embedded": LOWER,
}
GAUSSIAN = Gaussian(
    torch.tensor([0.4, -0.7], dtype=torch.float64),
    torch.tensor([[0.15, 0.06], [0.06, 0.09]], dtype=torch.float64),
)
S = torch.linspace(0.0, 0.3, 6, dtype=torch.float64)
T = torch.linspace(0.7, 1.0, 6, dtype=torch.float64).flip(0)
X = torch.linspace(0.1, 0.8, 12, dtype=torch.float64).reshape(6, 2)


def logistic(x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
    """dx/dt = (1 + 2 cos 3t) x (1 - x): nonlinear in x, and explicit in t."""
    return (1.0 + 2.0 * torch.cos(3.0 * t)).unsqueeze(1) * x * (1.0 - x)


def logistic_map(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    grown = (t + torch.sin(3.0 * t) * 2.0 / 3.0) - (s + torch.sin(3.0 * s) * 2.0 / 3.0)
    return 1.0 / (1.0 + (1.0 / x - 1.0) * torch.exp(-grown).unsqueeze(1))


SYSTEMS: dict[str, tuple[Velocity, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "gaussian": (GAUSSIAN, GAUSSIAN.flow_map()),
    "logistic": (logistic, logistic_map),
}


def slope(error: Callable[[int], float], steps: list[int]) -> float:
    """The order: minus the least-squares slope of log error against log steps."""
    h = torch.tensor(steps, dtype=torch.float64).log()
    e = torch.tensor([error(n) for n in steps], dtype=torch.float64).log()
    h, e = h - h.mean(), e - e.mean()
    return -float((h * e).sum() / h.square().sum())


def rows_grid(steps: int, s: Tensor, t: Tensor) -> Tensor:
    """Equal steps over a span of its own in every row, [steps + 1, B]."""
    return torch.lerp(s, t, torch.linspace(0, 1, steps + 1, dtype=torch.float64).unsqueeze(1))


@pytest.mark.parametrize("backwards", [False, True], ids=["to data", "to noise"])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", TABLEAUX)
def test_order_of_a_tableau(name: str, system: str, backwards: bool) -> None:
    tableau, (velocity, exact) = TABLEAUX[name], SYSTEMS[system]
    s, t = (T, S) if backwards else (S, T)
    truth = exact(X, s, t)

    def error(steps: int) -> float:
        return float((integrate(velocity, X, rows_grid(steps, s, t), tableau) - truth).norm())

    # fine enough for the leading term to rule, coarse enough for it to stand above rounding
    steps = [64, 96, 128]
    assert error(steps[-1]) > 2e-14
    assert slope(error, steps) == pytest.approx(tableau.order, abs=0.15)


def test_order_of_ddim() -> None:
    system = Gaussian(GAUSSIAN.mean, GAUSSIAN.cov, Trigonometric())
    truth = system.flow_map()(X, S, T)

    def error(steps: int) -> float:
        x, grid = X, rows_grid(steps, S, T)
        for s, t in zip(grid, grid[1:], strict=False):
            x = ddim(system, x, s, t, system.interpolant)
        return float((x - truth).norm())

    assert slope(error, [64, 128, 256]) == pytest.approx(1.0, abs=0.15)
