"""A student that starts as its teacher: the same network with a second time added.

The network of a two-time map sees s and t - s. With what it makes of t - s = 0 kept as a constant and
its weights on t - s set to zero, F(x, s, t) is the teacher's F(x, s, s) for every t, and

* for :class:`saltus.maps.AverageVelocity` and :class:`saltus.maps.EDM`, whose u depends on t by F alone,
  u_{s,t}(x) = b_s(x) for every t: the jump is one Euler step of the teacher;
* for :class:`saltus.maps.Trigonometric`, u_{t,t} = b_t, and the jump is one step by its rotation,
  X_{s,t}(x) = cos(a) x + sin(a) (2/pi) b_s(x), a = (pi/2)(t - s): a DDIM step.

The weights on t - s keep their gradient, so the student learns t from there. A student of policies
(:mod:`saltus.policies`) starts with the velocity's network and second heads of zero: momentum modes and
grids of estimates then have the velocity b_s, components of a mixture lie around where it points.

References:
    Frans et al., "One step diffusion via shortcut models", 2024, arXiv 2410.12557 (zero-initialised d).
    Sabour, Fidler and Kreis, "Align your flow", 2025, arXiv 2506.14603 (initialised from the teacher).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from saltus.maps import EDM, AverageVelocity, NetworkMap, Trigonometric
from saltus.policies import PolicyNetwork

__all__ = ["from_teacher"]


@runtime_checkable
class Inheriting(Protocol):
    """A backbone that can start as another one of its kind."""

    def inherit(self, teacher: nn.Module) -> None:
        """Copy the teacher's weights, so that the output at (s, t) is the teacher's at (s, s)."""
        ...


def _scale(flow_map: NetworkMap) -> float | None:
    return flow_map.sigma_data if isinstance(flow_map, Trigonometric | EDM) else None


def from_teacher(student: NetworkMap, teacher: NetworkMap) -> None:
    """Copy the teacher's weights into the student, so that u_{s,t}(x) = b_s(x) for every t (see above).

    The student may have what its teacher lacks: a label or a strength of guidance as an input has no
    influence at first, and a second head starts as the velocity too.

    Args:
        student: changed in place.
        teacher: a map of the same kind around a backbone of the same kind and size; of policies, a map of
            theirs or an :class:`saltus.maps.AverageVelocity`.

    Raises:
        ValueError: if the two differ in anything else; it names what.

    >>> import torch
    >>> from saltus.nn import build
    >>> one, two = (AverageVelocity(build("mlp", "tiny", (2,))) for _ in "ab")
    >>> x, s, t = torch.ones(3, 2), torch.zeros(3), torch.ones(3)
    >>> from_teacher(two, one)
    >>> bool((two.average(x, s, t) == one.velocity(x, s)).all())
    True
    """
    newly = isinstance(student, PolicyNetwork) and isinstance(teacher, AverageVelocity)
    if not newly and (type(student) is not type(teacher) or _scale(student) != _scale(teacher)):
        got = " and ".join(
            type(m).__name__ + ("" if _scale(m) is None else f" of sigma_data {_scale(m):g}")
            for m in (student, teacher)
        )
        raise ValueError(
            f"from_teacher: expected student and teacher of one parametrisation, got {got}; build the "
            f"student with the teacher's, for instance {AverageVelocity.__name__} for both"
        )
    if not isinstance(student.backbone, Inheriting):
        raise ValueError(
            f"from_teacher: expected a backbone with a method inherit(teacher), as those of saltus.nn have, "
            f"got {type(student.backbone).__name__}; write one, or start the student at random"
        )
    student.backbone.inherit(teacher.backbone)
    if newly:
        heads = {name: p for name, p in student.backbone.named_parameters() if ".heads." in name}
        gains = {name: p for name, p in heads.items() if name.endswith(".gain")}  # of weights on a sphere
        for p in (gains or heads).values():
            nn.init.zeros_(p)
