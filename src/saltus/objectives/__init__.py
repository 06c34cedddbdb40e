"""The algebra's losses. Each is a pure function of tensors with its randomness drawn beforehand.

:class:`Diagonal` learns the velocity, u_{t,t} = b_t. The trajectory losses make u_{s,t} its average:
:class:`Lagrangian` (a split near t), :class:`Eulerian` (near s), :class:`Composition` (in between) and
:class:`Endpoint` (none); :class:`Imitation` asks it of a policy along its way. :class:`Distribution`
matches the law of the student's samples instead, beside a critic that learns :class:`OnSamples`;
:class:`Adversarial` beside a discriminator that learns :class:`Discrimination`. :class:`Moments` compares
the laws of groups of jumps, :class:`Drift` moves samples along a field between them and the data.
:class:`OnFlow`, :class:`OnStored` and :class:`Renewed` give another objective the pairs of a flow.
:class:`Sum` adds losses, on rows of their own or on the same.
"""

from saltus.objectives.adversarial import Adversarial, Discrimination, Real
from saltus.objectives.composition import Composition
from saltus.objectives.diagonal import Diagonal
from saltus.objectives.distribution import Distribution, OnSamples, PerResidual
from saltus.objectives.drift import Drift, Normalisation
from saltus.objectives.endpoint import Endpoint
from saltus.objectives.eulerian import Eulerian
from saltus.objectives.imitation import Imitation
from saltus.objectives.lagrangian import Lagrangian
from saltus.objectives.moments import Moments
from saltus.objectives.pairs import Continued, OnFlow, OnStored, Renewed, Wrapped
from saltus.objectives.sum import Part, Sum

__all__ = [
    "Adversarial",
    "Composition",
    "Continued",
    "Diagonal",
    "Discrimination",
    "Distribution",
    "Drift",
    "Endpoint",
    "Eulerian",
    "Imitation",
    "Lagrangian",
    "Moments",
    "Normalisation",
    "OnFlow",
    "OnSamples",
    "OnStored",
    "Part",
    "PerResidual",
    "Real",
    "Renewed",
    "Sum",
    "Wrapped",
]
