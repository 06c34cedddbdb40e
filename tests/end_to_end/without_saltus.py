"""What a program without saltus sees of exported folders and programs: run in a process of its own.

``python without_saltus.py PLACE [--cards NAMES]`` reads ``PLACE/cases.json`` and writes ``PLACE/seen.json``.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Absent(importlib.abc.MetaPathFinder):
    """Makes a package impossible to import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "saltus":
            raise ModuleNotFoundError(f"No module named {name!r}")


def drawn(pipe: Any, case: dict[str, Any], truth: dict[str, np.ndarray], steps: int) -> torch.Tensor:  # noqa: ANN401
    """The images of a pipeline from the noise that saltus took."""
    return pipe(
        num_inference_steps=steps,
        latents=torch.from_numpy(truth["x0"]),
        noises=[torch.from_numpy(z) for z in truth["noises"][: steps - 1]],
        output_type="latent",
        **case["asked"],
    ).images


def loaded(folder: Path) -> Any:  # noqa: ANN401
    """The pipeline of a folder."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def distances(pipe: Any, place: Path, case: dict[str, Any]) -> dict[str, float]:  # noqa: ANN401
    """How far the images of a pipeline are from those of saltus, by step count."""
    truth = dict(np.load(place / f"{case['truth']}.npz"))
    found = {
        str(k): float((drawn(pipe, case, truth, k) - torch.from_numpy(truth[str(k)])).abs().max())
        for k in case["steps"]
    }
    if "pixels" in truth:
        images = pipe(latents=torch.from_numpy(truth["x0"]), output_type="pt", **case["asked"]).images
        found["pixels"] = float((images - torch.from_numpy(truth["pixels"]).clamp(0, 1)).abs().max())
    return found


def refused(call: Callable[[], object]) -> str:
    """What a call that must fail says."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def asked_wrongly(place: Path) -> dict[str, str]:
    """What the pipeline says to requests that make no sense."""
    from diffusers import DiffusionPipeline

    guided = DiffusionPipeline.from_pretrained(place / "jumps", trust_remote_code=True)
    bare = DiffusionPipeline.from_pretrained(place / "ode", trust_remote_code=True)
    return {
        "trust": refused(lambda: DiffusionPipeline.from_pretrained(place / "jumps")),
        "steps": refused(lambda: guided(num_inference_steps=3)),
        "label": refused(lambda: guided(class_labels=[11])),
        "labels": refused(lambda: bare(class_labels=[1])),
        "guidance": refused(lambda: bare(guidance_scale=2.0)),
        "latents": refused(lambda: bare(latents=torch.zeros(2, 1, 8, 8))),
        "counts": refused(lambda: guided(batch_size=3, class_labels=[1, 2])),
        "type": refused(lambda: guided(output_type="jpeg")),
    }


def looks(place: Path) -> dict[str, Any]:
    """Forms of the output, seeds and half precision."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(place / "renoise", trust_remote_code=True)
    forms = {
        form: pipe(
            class_labels=[3, 4],
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(5),
            output_type=form,
        ).images
        for form in ("latent", "np", "pil", "pt")
    }
    unit = (forms["latent"] / 2 + 0.5).clamp(0, 1)
    pixels = np.stack([np.asarray(image) for image in forms["pil"]])
    half = DiffusionPipeline.from_pretrained(
        place / "jumps", trust_remote_code=True, torch_dtype=torch.bfloat16
    )
    whole = DiffusionPipeline.from_pretrained(place / "jumps", trust_remote_code=True)
    latents = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    low, full = (p(latents=latents, output_type="latent").images for p in (half, whole))
    null, none = (whole.flow_map(latents, 1000.0, 0.0, torch.tensor([k] * 4)) for k in (10, 3))
    w = torch.full((4,), 3.0)
    strong, bare = (
        whole.flow_map(latents, 1000.0, 0.0, labels, w) for labels in (torch.tensor([10] * 4), None)
    )
    return {
        "guided": float((strong - null).abs().max()),
        "guided without labels": float((strong - bare).abs().max()),
        "np": float(np.abs(forms["np"] - unit.permute(0, 2, 3, 1).numpy()).max()),
        "pt": float((forms["pt"] - unit).abs().max()),
        "pil": float(np.abs(pixels / 255.0 - unit[:, 0].numpy()).max()),
        "mode": forms["pil"][0].mode,
        "half": float((low - full).norm() / (full - latents).norm()),
        "half type": str(low.dtype),
        "unconditional": float((whole.flow_map(latents, 1000.0, 0.0) - null).abs().max()),
        "conditional": float((none - null).abs().max()),
    }


def program(path: Path) -> float:
    """How far a torch.export program is from saltus."""
    truth = {k: torch.from_numpy(v) for k, v in np.load(path.with_suffix(".npz")).items()}
    answer = truth.pop("answer")
    return float((torch.export.load(path).module()(*truth.values()) - answer).abs().max())


def example(readme: Path) -> None:
    """Run the code of a model card as it is written."""
    code = readme.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, str(readme), "exec"), {})


def main(place: Path, cards: list[str]) -> None:
    cases = json.loads((place / "cases.json").read_text())
    seen: dict[str, Any] = {
        name: distances(loaded(place / name), place, case) for name, case in cases.items()
    }
    for name in cards:
        example(place / name / "README.md")
    if not cards:
        seen |= further(place, cases)
    (place / "seen.json").write_text(json.dumps(seen))


def further(place: Path, cases: dict[str, Any]) -> dict[str, Any]:
    """What is asked of maps of saltus's own networks besides."""
    seen: dict[str, Any] = {}
    first = loaded(place / "jumps")
    loaded(place / "twisted")
    seen["again"] = distances(first, place, cases["jumps"])
    seen["wrong"] = asked_wrongly(place)
    seen["looks"] = looks(place)
    seen["programs"] = {p.stem: program(p) for p in sorted(place.glob("*.pt2"))}
    example(place / "jumps" / "README.md")
    return seen


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    main(Path(sys.argv[1]), sys.argv[3:])
