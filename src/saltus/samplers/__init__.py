"""Sampling: folds of single steps over a grid of times, without gradient.

=================  ==========================  ================================================
sampler            samples                     one step from s to t
=================  ==========================  ================================================
:func:`integrate`  any velocity                a Runge-Kutta step
:func:`adaptive`   any velocity                as many steps as the tolerance needs, row by row
:func:`jumps`      a flow map X_{s,t}          one jump
:func:`renoise`    a flow map, or one to t=1   a jump ahead, then fresh noise back to t
=================  ==========================  ================================================

:func:`best_of` searches the prior with the third one for the noise that a reward likes best.

The four take a grid of times or a number of equal steps, and return the last state, or with
``record=True`` the whole :class:`Trajectory`. All five run under ``torch.no_grad``: to differentiate
through a roll-out, compose the steps of :mod:`saltus.legs`.
"""

from saltus.samplers.draw import batched, prior
from saltus.samplers.grids import cosine, karras, uniform
from saltus.samplers.jumps import jumps
from saltus.samplers.ode import adaptive, integrate
from saltus.samplers.renoise import renoise
from saltus.samplers.search import Best, Reward, best_of
from saltus.samplers.trajectory import Trajectory

__all__ = [
    "Best",
    "Reward",
    "Trajectory",
    "adaptive",
    "batched",
    "best_of",
    "cosine",
    "integrate",
    "jumps",
    "karras",
    "prior",
    "renoise",
    "uniform",
]
