"""``saltus doctor``: what this machine offers, and a self-test of the mathematics."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from saltus import __version__
from saltus.autodiff import derivative
from saltus.exact import Gaussian, reference_map, reference_mixture
from saltus.identities import eulerian, lagrangian, semigroup
from saltus.legs import HEUN
from saltus.nn.attention import ATTENTION, attention
from saltus.samplers import integrate, jumps
from saltus.streams import Streams
from saltus.training import has_bf16

__all__ = ["doctor"]

EXTRAS = {"scikit-learn": "digits", "scipy": "metrics", "matplotlib": "plots"}
LIMIT = 1e-9
"""Largest residual of an identity in float64."""


def doctor() -> int:
    """Check versions, devices, precision and optional packages, and test the exact identities.

    The self-test takes the closed-form flow map of a Gaussian in float64 through every identity that
    training relies on, and the exact mixture through two solvers. The exit status is 1 if one fails.
    """
    where = f"{platform.system()} {platform.machine()}"
    print(f"saltus {__version__} on Python {platform.python_version()}, {where}")
    for name in ("torch", "numpy", "safetensors", "tyro", "pillow", "rich"):
        print(f"  {name:<14}{importlib.metadata.version(name)}")
    for name, extra in EXTRAS.items():
        missing = f"not installed; pip install 'saltus[{extra}]'"
        print(f"  {name:<14}{_version(name) or missing}")
    print("devices")
    bf16 = "in hardware" if has_bf16(torch.device("cpu")) else "not in hardware (auto takes float32)"
    cores = len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count()
    threads = counted(torch.get_num_threads(), "thread")
    print(f"  CPU           {counted(cores or 1, 'core')}, {threads}, bf16 {bf16}")
    if torch.cuda.is_available():
        print(f"  GPU           {torch.cuda.get_device_name()}")
    print(f"  attention     {ATTENTION}")
    print("self-test, largest residual")
    begin = time.perf_counter()
    verdicts = [_report(name, check) for name, check in CHECKS.items()]
    print(f"{'all is well' if all(verdicts) else 'SOMETHING IS WRONG'} ({time.perf_counter() - begin:.1f} s)")
    return int(not all(verdicts))


def counted(n: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "thread"), counted(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _report(name: str, check: Callable[[], float]) -> bool:
    worst = check()
    good = worst <= LIMIT
    print(f"  {name:<38}{worst:8.1e}  {'ok' if good else f'expected at most {LIMIT:g}'}")
    return good


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _rows(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """States [n, 2] and ordered times [n] in float64."""
    rng = Streams(0, index=torch.arange(n), dtype=torch.float64)
    times = rng.uniform("times", 2).sort(dim=1).values
    return 2.0 * rng.normal("x", 2), times[:, 0], times[:, 1]


def _law() -> Gaussian:
    cov = torch.tensor([[0.64, 0.42], [0.42, 0.5625]], dtype=torch.float64)
    return Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), cov)


def _identity(residual: Callable[[Gaussian, Tensor, Tensor, Tensor], Tensor]) -> Callable[[], float]:
    return lambda: _largest(residual(_law(), *_rows(256)))


def _gradient() -> float:
    """The derivative of u in t by forward mode, against a central difference."""
    x, s, t = _rows(256)
    X = _law().flow_map()
    t = 0.1 + 0.8 * t
    _, du = derivative(lambda end: X.average(x, s, end), (t,), (torch.ones_like(t),))
    h = 1e-4
    # fourth-order difference: its error is some h^4 of the fifth derivative
    near = X.average(x, s, t + h) - X.average(x, s, t - h)
    far = X.average(x, s, t + 2 * h) - X.average(x, s, t - 2 * h)
    return _largest(du - (8.0 * near - far) / (12.0 * h))


def _attention() -> float:
    """The derivative of attention, which its fused kernels do not have, against a central difference; the
    values of both inside and outside of it."""
    rng = Streams(0, index=torch.arange(8), dtype=torch.float64)
    q, k, v, dq = (rng.normal(name, 2, 16, 4) for name in ("q", "k", "v", "dq"))
    value, slope = derivative(lambda q: attention(q, k, v), (q,), (dq,))
    h = 1e-3
    ends = [attention(q + n * h * dq, k, v) for n in (-2, -1, 1, 2)]
    numeric = (ends[0] - 8.0 * ends[1] + 8.0 * ends[2] - ends[3]) / (12.0 * h)
    return max(_largest(slope - numeric), _largest(value - attention(q, k, v)))


def _composed() -> float:
    """Sixteen jumps of the exact map land where one does."""
    x, _, _ = _rows(256)
    X = _law().flow_map()
    return _largest(jumps(X, x, 16) - jumps(X, x, 1))


def _solver() -> float:
    """The reference solver on the mixture, there and back again."""
    x, s, t = _rows(32)
    b = reference_mixture()
    return _largest(reference_map(b, reference_map(b, x, s, t), t, s) - x)


def _order() -> float:
    """Heun's measured order of convergence on the Gaussian, as its distance above 0.15 from 2."""
    x, _, _ = _rows(64)
    law = _law()
    truth = jumps(law.flow_map(), x, 1)
    coarse, fine = (_largest(integrate(law, x, k, HEUN) - truth) for k in (64, 128))
    return max(0.0, abs(torch.tensor(coarse / fine).log2().item() - 2.0) - 0.15)


CHECKS: dict[str, Callable[[], float]] = {
    "tangent: u_{t,t} = b_t": _identity(lambda g, x, s, t: g.flow_map().average(x, t, t) - g(x, t)),
    "Lagrangian: d_t X = b_t(X)": _identity(lambda g, x, s, t: lagrangian(g.flow_map(), g, x, s, t)),
    "Eulerian: d_s X + grad X b_s = 0": _identity(lambda g, x, s, t: eulerian(g.flow_map(), g, x, s, t)),
    "semigroup: X_{m,t} X_{s,m} = X_{s,t}": _identity(
        lambda g, x, s, t: semigroup(g.flow_map(), x, s, (s + t) / 2.0, t)
    ),
    "forward mode against a difference": _gradient,
    "attention's derivative": _attention,
    "16 jumps are one": _composed,
    "mixture solved there and back": _solver,
    "Heun's order is 2 within 0.15": _order,
}
