"""Legs along a diffusion that has the flow's laws: the reverse SDE with its noise scaled by eta.

With D = E[x1 | x_s] held fixed and E = E[x0 | x_s] likewise, one step from s to m is

    x_m = beta_m D + sqrt(alpha_m^2 - sigma^2) E + sigma z,
    sigma = eta (alpha_m/alpha_s) sqrt(alpha_s^2 - (beta_s alpha_m/beta_m)^2),   z ~ N(0, I).

At eta = 0 it is the DDIM step, at eta = 1 the ancestral one: sigma^2 is then the variance of x_m given
x_s and x1 where x_s is x_m with noise added. Where the data are a single point the law of I_m is met exactly
for any eta and any length. As m - s -> 0,

    dx = [ b + (eta^2/2) g^2 grad log p_t ] dt + eta g dW,   g^2 = 2 alpha (alpha dbeta - dalpha beta)/beta,

which has the law of I_t at every t for every eta. Its paths are not the flow's: a jump that is to end where
such a path ends, in the mean square, learns at eta = 1 the posterior mean E[x1 | x_s], because
that is a martingale along it; between, something between.

References:
    Song, Meng and Ermon, "Denoising diffusion implicit models", 2020, arXiv 2010.02502, eq. (16), on any
    interpolant here.
    Zhang and Chen, "Fast sampling of diffusion models with exponential integrator", 2022, arXiv 2204.13902
    (the family with the flow's marginals).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saltus.interpolants import Interpolant
from saltus.legs import ends
from saltus.slots import Own, Slot
from saltus.states import State
from saltus.tensors import like
from saltus.typing import Condition, FlowMap

__all__ = ["ReverseSDE", "diffuse"]


def diffuse(
    interpolant: Interpolant, x: Tensor, b: Tensor, s: Tensor, t: Tensor, eta: float, z: Tensor
) -> Tensor:
    """One step of the diffusion from s to t > s, both [B]; x, its velocity b and the noise z are [B, ...].

    >>> from saltus.interpolants import Linear
    >>> x, b, z = torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1)
    >>> s, t = torch.tensor([0.5]), torch.tensor([0.75])
    >>> diffuse(Linear(), x, b, s, t, 0.0, z)
    tensor([[1.2500]])
    """
    x0, x1 = ends(interpolant, x, b, s)
    here, there = interpolant(s), interpolant(t)
    kept = (here.alpha.square() - (here.beta * there.alpha / there.beta).square()).clamp(min=0.0)
    sigma = eta * there.alpha / here.alpha * torch.sqrt(kept)
    rest = torch.sqrt((there.alpha.square() - sigma.square()).clamp(min=0.0))
    return (like(there.beta, x) * x1 + like(rest, x) * x0 + like(sigma, x) * z).to(x.dtype)


@dataclass(frozen=True, eq=False)
class ReverseSDE:
    """``steps`` equal steps of the diffusion along a velocity.

    The noise is drawn with the times, by the objective that takes the leg.

    Attributes:
        velocity: who supplies it.
        eta: the noise; 0 is DDIM, which draws none, 1 the reverse of the diffusion.
        steps: their number.
    """

    velocity: Slot = Own()
    eta: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not (0.0 <= self.eta <= 1.0 and self.steps >= 1):
            raise ValueError(
                f"diffusion: expected eta from 0 to 1 and at least 1 step, got eta={self.eta} and "
                f"{self.steps} steps; eta = 0 follows the flow"
            )

    @property
    def noises(self) -> int:
        """How many normals a row needs."""
        return self.steps if self.eta > 0.0 else 0

    def __call__(
        self,
        own: FlowMap,
        state: State,
        interpolant: Interpolant,
        s: Tensor,
        m: Tensor,
        cond: Condition | None,
    ) -> Tensor:
        if state.noise is None and self.noises:
            raise ValueError(
                "diffusion: expected a state with noise, got none; put draw_noise(leg, ...) into the draws, "
                "or take eta = 0"
            )
        x, start = state.x, s
        for k in range(self.steps):
            end = torch.lerp(s, m, (k + 1) / self.steps)
            b = self.velocity(own, State(x), start, cond)
            z = torch.zeros_like(x) if state.noise is None else state.noise[:, k].to(x)
            x, start = diffuse(interpolant, x, b, start, end, self.eta, z), end
        return x
