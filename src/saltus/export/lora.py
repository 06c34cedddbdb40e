"""The adapters of a student for diffusers' own pipelines: a folder that ``load_lora_weights`` takes.

    pytorch_lora_weights.safetensors    of one jump from noise to data, or of a velocity
    second_time.safetensors             what jumps between other times need; diffusers does not read it
    README.md                           how to sample with them
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from saltus.export.card import Story
from saltus.export.folder import check_folder, fresh_folder
from saltus.interpolants import VE, Linear
from saltus.methods import Sampler
from saltus.nn import parameter_count
from saltus.teachers.diffusers.lora import ADAPTERS, AdaptedBackbone, save_lora
from saltus.teachers.diffusers.packages import part

__all__ = ["write_lora"]

INDEX = "model_index.json"
FLOW = "one step of the pipeline's own scheduler from pure noise is the jump"
TABLE = """\
one step of DDIM from pure noise is the jump:

```python
from diffusers import DDIMScheduler

pipe.scheduler = DDIMScheduler.from_config(
    pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
)
```"""


def write_lora(
    out: Path, backbone: nn.Module, story: Story, base: Path | None, w: float | None, overwrite: bool
) -> int:
    """Write the folder; it is there as a whole or not at all.

    Args:
        out: a folder that is empty or not there.
        backbone: of the student.
        story: what to tell; its sampler says whether the adapters make a jump or a velocity.
        base: the folder of the model that they belong to.
        w: the strength of guidance that they are for; None for a student that learned none.
        overwrite: replace an exported folder.

    Returns:
        The size of the adapters in bytes.

    Raises:
        ValueError: for a student without adapters, one of a pipeline that loads none, a strength that is
            missing or not wanted, or a folder that must not be replaced.
    """
    if not isinstance(backbone, AdaptedBackbone) or base is None:
        raise ValueError(
            f"{story.name}: expected a student with adapters, which saltus distill --lora RANK trains, got "
            f"{parameter_count(backbone):,} weights of its own; export it --to diffusers"
        )
    kind = _pipeline_of(base)
    if not kind or not hasattr(part(kind), "load_lora_weights"):
        raise ValueError(
            f"{story.name}: expected a pipeline that loads adapters, got {kind or 'a network alone'}, which "
            "does not in diffusers; export it --to diffusers, which folds them in"
        )
    path = backbone.model.path.interpolant
    if isinstance(path, VE):
        raise ValueError(
            f"{story.name}: expected a teacher whose states begin as noise alone, got one of EDM; export it "
            "--to diffusers"
        )
    if story.guided is (w is None):
        learned = f"up to {story.guidance:g}" if story.guidance else "at many strengths"
        why = f"learned guidance {learned}: give --w" if story.guided else "learned no guidance: drop --w"
        raise ValueError(f"w: expected one strength for all that the adapters draw; {story.name} {why}")
    check_folder(out, overwrite, ADAPTERS)
    with fresh_folder(out) as draft:
        save_lora(backbone, draft, jump=story.sampler is not Sampler.ODE, w=w)
        said = _card(story, kind, isinstance(path, Linear), w, out.resolve().name)
        (draft / "README.md").write_text(said, encoding="utf-8")
        return (draft / ADAPTERS).stat().st_size


def _pipeline_of(base: Path) -> str:
    """The class of a folder's pipeline; empty for a network alone."""
    if not (base / INDEX).is_file():
        return ""
    return str(json.loads((base / INDEX).read_text(encoding="utf-8"))["_class_name"])


def _card(story: Story, kind: str, flow: bool, w: float | None, folder: str) -> str:
    jumps = f"they make one jump from noise to data; {FLOW if flow else TABLE}"
    velocity = "they give the velocity, for as many steps as the teacher takes"
    said = velocity if story.sampler is Sampler.ODE else jumps
    guided = "" if w is None else f"They hold guidance of strength {w:g}. "
    return (
        f"---\nlibrary_name: diffusers\ntags:\n- lora\n- flow-map\n- saltus\n- {story.method}\n---\n\n"
        f"# {story.name}\n\nAdapters of {story.base}, trained by {story.title} ({story.paper}) with saltus "
        f"{story.version}; weights: {story.weights}.\n\n```python\nfrom diffusers import {kind}\n\n"
        f'pipe = {kind}.from_pretrained("{story.base}")\npipe.load_lora_weights("{folder}")\n```\n\n'
        f"With `num_inference_steps=1` and `guidance_scale=1`, {said}\n\n"
        f"{guided}Jumps of other lengths need the second time, which diffusers has no place for: "
        "`saltus export RUN FOLDER --to diffusers` writes a pipeline with it.\n\n"
        f"The licence of {story.base} binds what was made of it; whoever publishes this folder states one.\n"
    )
