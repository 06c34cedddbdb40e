"""Data in, one-step sampler out: the example of the README, executable."""

import torch

from saltus.data import from_density, two_moons
from saltus.games import as_game
from saltus.maps import AverageVelocity
from saltus.methods.lsd import lsd
from saltus.nn import MLP
from saltus.samplers import jumps
from saltus.training import EMA, Cosine, fit

X = AverageVelocity(MLP((2,)))  # a flow map X_{s,t} of points in the plane
average = EMA(X, decay=0.99)
game = as_game(lsd(X), X)
for _ in fit(game, from_density(two_moons), steps=300, seed=0, batch=256, schedule=Cosine()):
    average.update()
samples = jumps(average.module, torch.randn(1000, 2), 1)  # noise to data in one evaluation
print(f"1,000 samples, mean {samples.mean():.2f}, spread {samples.std():.2f}")
