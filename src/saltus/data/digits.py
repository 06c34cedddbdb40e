"""The 1,797 real handwritten digits, 8 x 8 pixels, that scikit-learn ships: no download."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["digits"]


def digits() -> tuple[Tensor, Tensor]:
    """Images float32 [1797, 1, 8, 8] in [-1, 1], and their labels int64 [1797], 0 to 9.

    The pixels count inked points of a 4 x 4 block, 0 to 16; -1 is blank paper.

    Raises:
        ImportError: scikit-learn is not installed.

    References:
        Kaynak, "Methods of combining multiple classifiers and their applications to handwritten
        digit recognition", 1995; "Optical recognition of handwritten digits", UCI repository.

    >>> images, labels = digits()
    >>> images.shape, labels.unique().numel()
    (torch.Size([1797, 1, 8, 8]), 10)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:  # also of what scikit-learn itself needs, such as SciPy
        absent = error.name or "sklearn"
        what = "" if absent.startswith("sklearn") else f", which needs {absent}, and that is not installed"
        raise ImportError(f"the digits come with scikit-learn{what}: pip install 'saltus[digits]'") from error
    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1)
    return images / 8.0 - 1.0, torch.from_numpy(found.target).long()
