"""A network that starts as another one of its kind, with new inputs that have no influence yet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["copied", "fold_constant", "refusal"]

_HEADS, _LAYER = "out.heads.", "out.u."
_INPUTS = {
    "conditioning.label.": "label",
    "conditioning.w.": "strength of guidance",
    "conditioning.pooled.": "embedding of a whole text",
    "balance.label": "label",
    "balance.w": "strength of guidance",
    "label.": "label",
    "w.": "strength of guidance",
    "text.": "tokens",
}
"""Parameters by which an input enters a network of :mod:`saltus.nn`, and what the input is."""
_BEHIND = ("label.", "w.", "text.")
"""Those of a new input that have zeros after them, so that they keep what they start with and can learn."""
_CROSS, _CROSS_END = ".cross.", ".cross.leave."


def _fresh(name: str, own: Tensor) -> Tensor | None:
    """The weights of an input that only the student has; None for other weights."""
    if _CROSS in name:
        return torch.zeros_like(own) if _CROSS_END in name else own.clone()
    if not name.startswith(tuple(_INPUTS)):
        return None
    return own.clone() if name.startswith(_BEHIND) else torch.zeros_like(own)


def copied(student: nn.Module, teacher: nn.Module, columns: Mapping[str, Tensor] | None = None) -> None:
    """Copy every weight of the teacher into the student.

    An input that only the student has is silenced by zeros, and a second head that only it has starts as
    a copy of the first; a head that only the teacher has is dropped.

    Args:
        student: changed in place.
        teacher: of the same class.
        columns: for a layer whose inputs differ, its weight's name and the student's columns of the
            teacher's inputs, int64; its other columns become zero.

    Raises:
        ValueError: if class, size or inputs differ otherwise; it names what, and changes nothing.
    """
    if type(student) is not type(teacher):
        raise ValueError(refusal("one backbone", type(student).__name__, type(teacher).__name__, "backbone"))
    columns = columns or {}
    mine, theirs = student.state_dict(), teacher.state_dict()
    new: dict[str, Tensor] = {}
    for name, own in mine.items():
        source = theirs.get(name)
        if source is None and name.startswith(_HEADS):
            source = theirs.get(_LAYER + name.rpartition(".")[2])
        if source is None:
            source = _fresh(name, own)
        into = own[:, columns[name]] if name in columns else own
        if source is None or source.shape != into.shape:
            got = "none" if source is None else str(list(source.shape))
            raise ValueError(refusal(f"equal weights {name}", str(list(into.shape)), got, "size"))
        if name in columns:
            wide = torch.zeros_like(own)
            wide[:, columns[name]] = source.to(own)
            source = wide
        new[name] = source
    for name in theirs:
        if name not in mine and not name.startswith(_HEADS):
            what = next((v for k, v in _INPUTS.items() if name.startswith(k)), f"weights {name}")
            raise ValueError(refusal(f"every input of the teacher ({what})", "none", "one", "inputs"))
    student.load_state_dict(new)


def refusal(expected: str, student: str, teacher: str, fix: str) -> str:
    """What :func:`copied` says of two networks that do not fit."""
    return (
        f"student from its teacher: expected {expected}, got {student} in the student and {teacher} in the "
        f"teacher; build the student with the teacher's {fix}"
    )


@torch.no_grad()
def fold_constant(layer: nn.Linear, columns: slice, value: Tensor) -> None:
    """Make the inputs in ``columns`` the constant ``value`` [n]: their part moves into the bias, in float64,
    and their weights become zero."""
    part = layer.weight[:, columns].double() @ value.to(layer.weight.device).double()
    layer.bias.copy_((layer.bias.double() + part).to(layer.bias))
    layer.weight[:, columns] = 0.0
