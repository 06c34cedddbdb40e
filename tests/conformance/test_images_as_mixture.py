"""Images as a mixture: every distillation method runs unchanged on 500 real digits as the means of a mixture,
with the exact velocity as the teacher, and its one-step map comes nearer the exact one.

``saltus bench images`` is the same at length; here are 200 steps of batch 64.
"""

from __future__ import annotations

import pytest
from kinds import each

from saltus.methods import Need, Sampler, discover
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
    """A third of the way from the noise to where the exact flow sends it; a tenth for maps that learn from
    their ends at t = 1 backwards, and have not come to the prior so soon."""
    row = measure(name, 0, *FEW, IMAGES)
    print(f"{name}: map RMSE {row['rmse']['1']:.2f}, sliced W2 {row['sw']['1']:.3f}, {row['seconds']:.1f} s")
    backwards = discover()[name].card.sampler is Sampler.RENOISE
    assert row["rmse"]["1"] < NOISE * (0.9 if backwards else 2.0 / 3.0)
