"""Policies: one network call at (x_s, s) names a velocity for all times from s on.

A policy is a velocity pi(x, t) for s <= t, made of what the network said of x_s, and is followed without the
network. The jump X_{s,t}(x_s) ends where the policy leads, so a few calls follow a curved trajectory. Kinds:

    momentum   pi = sum_k w_k mu_k exp(l_k (t - s)),   l_0 = 0, sum_k w_k = 1; in closed form
               u_{s,t} = sum_k w_k mu_k phi(l_k (t - s)),   phi(z) = (e^z - 1)/z
    grid       the velocity at (x, t) of the path to an estimate of x1, which runs through those that the
               network gives for N times in [s, t]
    mixture    the network's law of x1 given x_s is a Gaussian mixture; the law of x1 given x_t = x that
               follows from it by Bayes' rule is one too, and its mean is the velocity's estimate of x1

A mixture in each place, over the channels (axis 1). Where the data are a mixture of K isotropic Gaussians of
one variance, a mixture policy of K components with their responsibilities and posterior means is the exact
velocity at every (x, t): exact in one call. With ``spread{k}`` heads each component has its own variance.

Any flow map is a policy too, one that does not look at x: pi(t) = d_t X_{s,t}(x_s), by :class:`OpenLoop`.

References:
    Chen et al., "pi-Flow: policy-based few-step generation via imitation distillation", 2025,
    arXiv 2510.14974 (grid and mixture policies, there called DX and GMFlow).
    Chen et al., "Gaussian mixture flow matching models", 2025, arXiv 2504.05304.
    Yang et al., "ArcFlow: unleashing 2-step text-to-image generation via high-precision non-linear flow
    distillation", 2026, arXiv 2602.09014 (momentum).
"""

from saltus.policies.grid import GridMap, GridPolicy, grid_heads
from saltus.policies.mixture import MixtureMap, MixturePolicy, mixture_heads
from saltus.policies.momentum import MomentumMap, MomentumPolicy, momentum_heads
from saltus.policies.policy import OpenLoop, Policy, PolicyMap, PolicyNetwork, policy_of

__all__ = [
    "GridMap",
    "GridPolicy",
    "MixtureMap",
    "MixturePolicy",
    "MomentumMap",
    "MomentumPolicy",
    "OpenLoop",
    "Policy",
    "PolicyMap",
    "PolicyNetwork",
    "grid_heads",
    "mixture_heads",
    "momentum_heads",
    "policy_of",
]
