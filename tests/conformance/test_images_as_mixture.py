"""Images as a mixture: every distillation method runs unchanged on 500 real digits as the means of a mixture,
with the exact velocity as the teacher, and its one-step map comes nearer the exact one.

``saltus bench images`` is the same at length; here are 200 steps of batch 64.
"""

from __future__ import annotations

import pytest
import torch
from kinds import each
from systems import Perturbed, gaussian, objective_of, wired

from saltus.methods import Need, Sampler, discover
from saltus.objectives import Eulerian
from saltus.recipes.trials import IMAGES, measure

FEW = (200, 3e-3, 64)
NOISE = 8.3
"""The map error of an untrained network, which leaves the noise as it is."""
DISTILLED = [
    name
    for name, method in discover().items()
    if Need.TEACHER in method.card.needs and Need.LABELS not in method.card.needs
]


@pytest.mark.slow
@pytest.mark.parametrize("name", each(DISTILLED))
def test_every_distillation_method_learns_images(name: str) -> None:
    """In the fewest steps that its card allows: a third of the way from the noise to where the exact flow
    sends it; a tenth for maps that learn from later starts of the same jump, from the data backwards, and
    have not come to the prior so soon."""
    row = measure(name, 0, *FEW, IMAGES)
    rmse, sw = (row[kind][str(min(discover()[name].card.steps))] for kind in ("rmse", "sw"))
    print(f"{name}: map RMSE {rmse:.2f}, sliced W2 {sw:.3f}, {row['seconds']:.1f} s")
    assert rmse < NOISE * (0.9 if backwards(name) else 2.0 / 3.0)


def backwards(name: str) -> bool:
    """Consistency models, and methods that take a finite step from the start and jump on from there."""
    method = discover()[name]
    system = gaussian()
    built = wired(method, Perturbed(system.exact, torch.zeros(8).double()), system, **method.card.plain)
    step = vars(objective_of(built)).get("step") if isinstance(objective_of(built), Eulerian) else None
    return method.card.sampler is Sampler.RENOISE or step is not None
