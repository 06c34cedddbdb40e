"""The 1,797 real handwritten digits of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saltus.data import ArrayData
from saltus.data import digits as real_digits
from saltus.methods import Method, Need
from saltus.metrics import energy_distance, frechet, nearest
from saltus.metrics.features import PrincipalComponents
from saltus.recipes.assemble import assemble
from saltus.recipes.experiment import Experiment
from saltus.recipes.gallery import Gallery
from saltus.recipes.options import Network, Output, Training
from saltus.recipes.system import Drawn, Judge, System
from saltus.training import initialised

__all__ = ["AGREEMENT", "FRECHET", "RECIPE", "DigitsTruth", "digits", "distances"]

RECIPE = "1,797 real handwritten digits, 8 x 8 pixels, by class (four minutes)"

COMPONENTS = 32
FRECHET, AGREEMENT = "Fréchet", "agreement %"


def usual(method: Method, _: str | None) -> dict[str, object]:
    """A student of a teacher is trained for less: it starts with the teacher's weights."""
    taught = Need.TEACHER in method.card.needs
    return {"training": Training(steps=1200, batch=256)} if taught else {}


@torch.enable_grad()  # type: ignore[untyped-decorator]
def classifier(x: Tensor, label: Tensor, seed: int = 0, steps: int = 400) -> nn.Module:
    """A small network that tells the digits apart, trained in two seconds on x [N, 1, 8, 8].

    Noise keeps it from learning the N images by heart; of images that it has not seen it names some
    98 of 100.
    """

    def layers() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    net = initialised(seed, layers)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    random = torch.Generator().manual_seed(seed)
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1.0 - k / steps)
        rows = torch.randint(len(x), (256,), generator=random)
        seen = x[rows] + 0.25 * torch.randn(256, *x.shape[1:], generator=random)
        loss = F.cross_entropy(net(seen), label[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval().requires_grad_(False)


def distances(x: Tensor, real: Tensor, features: PrincipalComponents) -> dict[str, float]:
    """Fréchet distance in the features, energy distance, and the mean distance to the nearest real row."""
    return {
        FRECHET: float(frechet(x, real, features)),
        "energy": float(energy_distance(x, real)),
        "nearest": float(nearest(x, real).distance.mean()),
    }


class DigitsTruth:
    """Figures of digits against the real ones.

    Fréchet: the distance of two Gaussians fitted in 32 principal components of the real images.
    Energy: the energy distance of pixels. Agreement: how many of 100 a classifier takes for the digit
    that was asked for. Nearest: the mean distance to the nearest real image; a model that recites the
    data has 0.

    Args:
        x: the real images, [N, 1, 8, 8].
        label: their classes, int64 [N].
    """

    def __init__(self, x: Tensor, label: Tensor) -> None:
        self.x, self.label = x, label
        self.features = PrincipalComponents.of(x, COMPONENTS)

    @cached_property
    def taught(self) -> nn.Module:
        """The classifier of all real images."""
        return classifier(self.x, self.label)

    def figures(self, drawn: Drawn) -> dict[str, float]:
        """All of them; agreement only where a digit was asked for."""
        if drawn.label is None:
            return distances(drawn.x, self.x, self.features)
        return distances(drawn.x, self.x, self.features) | _agreement(self.taught, drawn.x, drawn.label)

    def real(self) -> dict[str, float]:
        """One half of the images in place of samples, the other as the data, classifier included."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))
        one, two = order.chunk(2)
        taught = classifier(self.x[one], self.label[one])
        apart = distances(self.x[two], self.x[one], self.features)
        return apart | _agreement(taught, self.x[two], self.label[two])


def _agreement(taught: nn.Module, x: Tensor, label: Tensor) -> dict[str, float]:
    return {AGREEMENT: 100.0 * float((taught(x.float()).argmax(dim=1) == label).float().mean())}


def digits(
    method: str = "lsd",
    plain: bool = False,
    labels: bool = True,
    guidance: float | None = None,
    dropout: float | None = None,
    teacher_steps: int = 3000,
    jump_weight: float = 1.0,
    network: Network = Network(backbone="residual-mlp"),
    training: Training = Training(steps=2700, batch=512),
    output: Output = Output(),
) -> Experiment:
    """Learn to draw 8 x 8 handwritten digits by class, from the 1,797 that scikit-learn ships.

    examples:
      saltus run digits-lsd
      saltus run digits-mean_flow --steps 1000 --out runs/mf
      saltus run digits-lsd --guidance 3 --steps 4000
      saltus run digits-flow_matching --dropout 0.1
      saltus run digits-freeflow

    Args:
        method: Any method that saltus methods lists.
        plain: Take the method's squared-error form instead of its paper's weights.
        labels: Give the network the class of each image.
        guidance: Learn the map at every strength of guidance up to this one; 1 is none.
        dropout: Share of labels dropped in training; None drops some where guidance needs it.
        teacher_steps: For methods that need a teacher: steps at a rate of 3e-3 that train it first.
        jump_weight: Factor on the terms of the loss that teach jumps; 1 is the method's own.
        network: The network.
        training: How it is trained.
        output: Where results go.
    """
    x, label = real_digits()

    def judge() -> Judge:
        truth = DigitsTruth(x, label)
        return Judge(len(x), label if labels else None, truth.figures, truth.real)

    system = System(
        "digits",
        shape=tuple(x.shape[1:]),
        sigma_data=float(x.std()),
        classes=10 if labels else None,
        source=ArrayData(x, training.batch, label if labels else None),
        judge=judge,
        gallery=lambda: Gallery.of(x, label, "the 1,797 digits"),
    )
    own: dict[str, object] = {
        "labels": labels,
        "guidance": guidance,
        "dropout": dropout,
        "teacher_steps": teacher_steps,
        "jump_weight": jump_weight,
    }
    parts = (system, method, plain, network, training, output, own)
    lesson = replace(training, steps=teacher_steps, lr=3e-3)
    return assemble(*parts, guidance, jump_weight, dropout, lesson)
