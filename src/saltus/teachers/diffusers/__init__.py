"""Models of diffusers as teachers: a local pipeline, or a network and a scheduler, becomes a Velocity.

:func:`open_diffusers` opens a folder; :class:`DiffusersModel` knows its network's family
(:mod:`~saltus.teachers.diffusers.families`), its path (:mod:`~saltus.teachers.diffusers.schedules`) and its
conditions (:mod:`~saltus.teachers.diffusers.texts`, :mod:`~saltus.teachers.diffusers.conditions`).
"""

from saltus.teachers.diffusers.conditions import filled
from saltus.teachers.diffusers.families import Family, family_of, forward_function, known_families
from saltus.teachers.diffusers.opened import DiffusersModel, open_diffusers
from saltus.teachers.diffusers.schedules import Path, Scalings, path_of
from saltus.teachers.diffusers.tabulated import Tabulated

__all__ = [
    "DiffusersModel",
    "Family",
    "Path",
    "Scalings",
    "Tabulated",
    "family_of",
    "filled",
    "forward_function",
    "known_families",
    "open_diffusers",
    "path_of",
]
