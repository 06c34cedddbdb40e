"""What a policy is, the open-loop policy of any flow map, and how flow maps are made of policies."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from saltus.identities import in_end
from saltus.maps import NetworkMap
from saltus.tensors import like
from saltus.typing import Condition, FlowMap, Output

__all__ = [
    "OpenLoop",
    "Policy",
    "PolicyMap",
    "PolicyNetwork",
    "count_of",
    "led",
    "policy_of",
    "stacked",
    "weights_of",
]


class Policy(Protocol):
    """What a network said at (x_s, s): a velocity, and where it leads."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """pi(x, t): x [B, ...], t [B], at or after s -> [B, ...]."""
        ...

    def mean(self, x: Tensor, a: Tensor, b: Tensor, substeps: int) -> Tensor:
        """The average velocity from x at a to where it leads at b, smooth at a = b, [B, ...]."""
        ...


@runtime_checkable
class PolicyMap(Protocol):
    """A flow map that is made of policies."""

    def policy(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Policy:
        """The policy for [s, t], from one network call at x [B, ...]."""
        ...


@dataclass(frozen=True, eq=False)
class OpenLoop:
    """The policy of any flow map: pi(t) = d_t X_{s,t}(x_s), whatever the state is.

    Attributes:
        flow_map: X.
        x, s: where it starts, [B, ...] and [B].
        cond: its condition.
    """

    flow_map: FlowMap
    x: Tensor
    s: Tensor
    cond: Condition | None = None

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """u + (t - s) d_t u at x_s."""
        u, du = in_end(self.flow_map, self.x, self.s, t, self.cond)
        return u + like(t - self.s, u) * du

    def mean(self, x: Tensor, a: Tensor, b: Tensor, substeps: int) -> Tensor:
        """(X_{s,b} - X_{s,a})/(b - a), and u_{s,b} where b = a."""
        first, last = (self.flow_map.average(self.x, self.s, t, self.cond) for t in (a, b))
        gone = like(b - a, last)
        moved = like(b - self.s, last) * last - like(a - self.s, first) * first
        return torch.where(gone != 0.0, moved / torch.where(gone != 0.0, gone, 1.0), last)


def policy_of(
    student: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None
) -> Policy:
    """The student's policy for [s, t] from x; its :class:`OpenLoop` where it is not made of policies."""
    if isinstance(student, PolicyMap):
        return student.policy(x, s, t, cond)
    return OpenLoop(student, x, s, cond)


def led(policy: Policy, x: Tensor, a: Tensor, b: Tensor, substeps: int) -> Tensor:
    """The average velocity of so many midpoint steps along a policy, none of which looks at b itself."""
    h = (b - a) / substeps
    total = torch.zeros_like(x)
    for k in range(substeps):
        now = a + k * h
        middle = x + like(0.5 * h, x) * policy.velocity(x, now)
        slope = policy.velocity(middle, now + 0.5 * h)
        x, total = x + like(h, x) * slope, total + slope
    return total / substeps


class PolicyNetwork(NetworkMap):
    """A flow map whose jumps are where its policies lead.

    Args:
        backbone: the network; its second heads say the policy beside u.
        substeps: of a policy that has no closed form, in one jump.
    """

    def __init__(self, backbone: nn.Module, substeps: int = 32) -> None:
        super().__init__(backbone)
        if substeps < 1:
            raise ValueError(f"substeps of a policy: expected at least 1, got {substeps}; 32 are usual")
        self.substeps = substeps

    @abstractmethod
    def policy(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Policy:
        """The policy for [s, t]."""

    def evaluate(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None = None) -> Output:
        """u_{s,t}(x) of the policy; no second heads are left."""
        u = self.policy(x, s, t, cond).mean(x, s, t, self.substeps)
        return Output(u.to(x.dtype), {})

    def velocity(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """pi(x, t) from x itself."""
        return self.policy(x, t, t, cond).velocity(x, t)

    def _said(self, x: Tensor, s: Tensor, t: Tensor, cond: Condition | None) -> Output:
        said: Output = self.backbone(x, s, t, cond)
        return Output(said.u.to(x.dtype), {name: h.to(x.dtype) for name, h in said.heads.items()})


def stacked(said: Output, name: str, count: int, first: Tensor | None = None) -> Tensor:
    """The heads name1, ..., each [B, ...], as [B, K, ...], after ``first`` if given."""
    known = sorted(said.heads)
    wanted = [f"{name}{k}" for k in range(1, count)]
    if set(wanted) - set(known):
        raise ValueError(
            f"policy: expected a network with heads {', '.join(wanted)}, got {', '.join(known) or 'none'}; "
            "build it with mixture_heads, grid_heads or momentum_heads of saltus.policies"
        )
    heads = [said.heads[one] for one in wanted]
    return torch.stack(heads if first is None else [first, *heads], dim=1)


def count_of(said: Output, name: str) -> int:
    """K, one more than there are heads of a name."""
    return 1 + sum(1 for head in said.heads if head.startswith(name))


def weights_of(said: Output, count: int) -> Tensor:
    """Logits of K components in each place, the first 0: [B, K, 1, ...]."""
    zero = torch.zeros_like(said.u)
    return stacked(said, "weight", count, zero).mean(dim=2, keepdim=True)
