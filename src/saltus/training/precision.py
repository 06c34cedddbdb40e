"""The number format of a forward pass: float32, bfloat16, or whichever suits the processor.

Under bfloat16 the matrix products and convolutions inside the loss run in half precision by
``torch.autocast``; parameters, times, the reduction of the loss, gradients and the optimiser stay
in float32. A float64 model is never cast: it is used where exactness is the point.

Time of one step, bfloat16 over float32: MLP of four hidden layers, plain flow matching in two
dimensions, AdamW, one thread of an AMD EPYC with AVX512-BF16, PyTorch 2.13, fastest of 40:

===== ========= ========== ==========
width 256 rows  1,024 rows 4,096 rows
===== ========= ========== ==========
64    1.12      0.83       0.37
128   0.92      0.29       0.34
256   0.57      0.29       0.59
512   0.36      0.68
===== ========= ========== ==========

(The machine was shared, so these are rough; with two threads width 32 had 1.27 and 1.18, width 64
1.23 and 0.98, width 96 1.09 and 0.87, width 128 1.04 at 256 rows.) The casts cost as much as narrow
products gain, so AUTO takes bfloat16 on a CPU only from a width of 128.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import Enum

import torch
from torch import nn

__all__ = ["Precision", "has_bf16"]


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (an emulation does not count)."""
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return any(bool(features.get(name)) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


CPU_WIDTH = 128  # the narrowest matrix for which bfloat16 pays on a CPU: see the table


class Precision(Enum):
    """What the matrix products of a loss are computed in.

    >>> Precision.AUTO.resolve(nn.Linear(2, 2, dtype=torch.float64))
    <Precision.FLOAT32: 'float32'>
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    BF16 = "bf16"

    def resolve(self, module: nn.Module) -> Precision:
        """FLOAT32 or BF16 for this module: AUTO is decided by its device, dtype and width.

        FLOAT32 means "as the parameters are", so a float64 module stays in float64 whatever is
        asked for.
        """
        parameters = [p for p in module.parameters() if p.is_floating_point()]
        if not parameters or any(p.dtype == torch.float64 for p in parameters):
            return Precision.FLOAT32
        if self is not Precision.AUTO:
            return self
        wide = max((min(p.shape[0], p.shape[1]) for p in parameters if p.ndim > 1), default=0)
        device = parameters[0].device
        pays = device.type != "cpu" or wide >= CPU_WIDTH
        return Precision.BF16 if pays and has_bf16(device) else Precision.FLOAT32

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """The autocast to compute in; AUTO must have been resolved."""
        if self is Precision.AUTO:
            raise ValueError("precision: expected FLOAT32 or BF16, got AUTO; call resolve(module) first")
        if self is Precision.FLOAT32:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)
