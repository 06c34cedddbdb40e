"""The card of an exported folder: what the map is, how to sample it, what was measured, who is cited."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from saltus.methods import Sampler

__all__ = ["Story", "model_card"]

ARXIV = re.compile(r"(?:after )?(?P<who>.+) (?P<year>\d{4}), arXiv (?P<number>\d{4}\.\d{4,5})")
UNMEASURED = "Nothing was measured with these weights; `saltus evaluate` does it."
WAYS = {
    Sampler.JUMPS: "composed jumps of the flow map, one network evaluation each",
    Sampler.RENOISE: "a jump to the data, fresh noise, and a jump again (stochastic multistep)",
    Sampler.ODE: "Euler steps of its velocity",
}


@dataclass(frozen=True)
class Story:
    """What a card tells.

    Attributes:
        name: of the run.
        method: its name.
        title: the method's name in print.
        paper: authors, year and arXiv id.
        sampler: how it is sampled.
        steps: the step counts that are meaningful.
        learned: what it learned from, in words.
        weights: which of the run's weights these are, in words.
        parameters: how many numbers the network holds.
        shape: of one image.
        classes: number of labels, or None.
        guided: whether the strength of guidance is an input.
        guidance: the largest strength that it learned, None where it learned none or does not say.
        figures: what was measured of these weights, as Markdown; empty if nothing was.
        version: of saltus.
        base: the name of the diffusers model that it was made of; empty for networks of saltus.
    """

    name: str
    method: str
    title: str
    paper: str
    sampler: Sampler
    steps: tuple[int, ...]
    learned: str
    weights: str
    parameters: int
    shape: tuple[int, ...]
    classes: int | None
    guided: bool
    guidance: float | None
    figures: str
    version: str
    base: str = ""


def model_card(
    story: Story, folder: str, weights: str, latents: bool = False, texts: bool = False
) -> str:
    """The text of README.md.

    Args:
        story: what to tell.
        folder: the name that the example loads.
        weights: the SHA-256 digest of the weights file.
        latents: whether an autoencoder makes images of the samples.
        texts: whether a text is asked for.
    """
    parts = [
        _head(story, texts),
        f"# {story.name}\n\nA flow map for {_images(story, latents, texts)}: {_counted(story)} from noise to "
        f"image. Trained with saltus {story.version}.",
        "```python\n" + _example(story, folder, texts) + "```\n\nThe folder carries its own code, which "
        "`trust_remote_code=True` runs. Where saltus is installed, `import saltus.export.pipelines` before "
        "loading makes that unnecessary: code that equals the installed version's is trusted.",
        "## What it is\n\n" + _facts(story, weights, texts),
        "## Figures\n\n" + (story.figures or UNMEASURED),
        "## Licence\n\nNot stated by the run. Whoever publishes this folder states one: `license:` in the "
        "header of this file. The code in it is saltus's, under the MIT License."
        + (f" The licence of {story.base} binds what was made of it." if story.base else ""),
        "## Citation\n\n```bibtex\n" + _citation(story) + "```",
    ]
    return "\n\n".join(parts) + "\n"


def _head(story: Story, texts: bool) -> str:
    tags = ["flow-map", "few-step", "saltus", story.method]
    task = "text-to-image" if texts else "unconditional-image-generation"
    head = ["library_name: diffusers", f"pipeline_tag: {task}", "tags:"]
    numbers = [m["number"] for m in ARXIV.finditer(story.paper)]
    return "\n".join(["---", *head, *(f"- {t}" for t in tags), *(f"- arxiv:{n}" for n in numbers), "---"])


def _images(story: Story, latents: bool, texts: bool) -> str:
    channels, height, width = story.shape
    kind = "grey images" if channels == 1 else "images"
    size = f"{kind} of {height} x {width} pixels"
    if latents:
        size = f"images whose latents are {channels} x {height} x {width}"
    of = "" if story.classes is None else f", of {story.classes} classes"
    return size + (", of texts" if texts else of)


def _counted(story: Story) -> str:
    counts = [str(k) for k in story.steps]
    listed = " or ".join([", ".join(counts[:-1]), counts[-1]]) if len(counts) > 1 else counts[0]
    return f"{listed} network evaluation" + ("" if story.steps == (1,) else "s")


def _example(story: Story, folder: str, texts: bool) -> str:
    labels = [] if story.classes is None else [k % story.classes for k in range(4)]
    asked = f"class_labels={labels}" if labels else "batch_size=4"
    if texts:
        asked = 'prompt="a cat"'
    guided = f", guidance_scale={min(2.0, story.guidance or 2.0):g}" if story.guided else ""
    return (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n\n"
        f"pipe = DiffusionPipeline.from_pretrained({json.dumps(folder)}, trust_remote_code=True)\n"
        f"images = pipe({asked}, num_inference_steps={story.steps[0]}{guided},\n"
        "              generator=torch.Generator().manual_seed(0)).images\n"
        'images[0].save("sample.png")\n'
    )


def _facts(story: Story, weights: str, texts: bool) -> str:
    guided = "an input" if story.guided else "not an input"
    if story.guidance is not None:
        guided += f", learned from 1 to {story.guidance:g}"
    if story.classes is None:
        labels = "none; `prompt` is a text, or one for each image" if texts else "none"
    else:
        labels = f"`class_labels` from 0 to {story.classes - 1}; {story.classes} stands for none of them"
    lines = {
        "method": f"{story.title} (`{story.method}`): {story.paper}",
        "learned from": story.learned,
        "sampler": f"{WAYS[story.sampler]}; `num_inference_steps` is {_counted(story)}",
        "labels": labels,
        "guidance": f"`guidance_scale` is {guided}",
        "network": f"{story.parameters:,} parameters, weights: {story.weights}",
        "weights file": f"SHA-256 {weights}",
        **({"made of": story.base} if story.base else {}),
        "output": "`pil`, `np` and `pt` show [-1, 1] as black to white; `latent` gives the numbers",
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def _citation(story: Story) -> str:
    """One entry for each arXiv id, and one for the program.

    The names are those of the method's card.
    """
    texts: Sequence[str] = [
        f"@misc{{{story.method}{m['year'] if k == 0 else m['number']},\n"
        f"  title = {{{story.title}}},\n  author = {{{_authors(m['who'])}}},\n  year = {{{m['year']}}},\n"
        f"  eprint = {{{m['number']}}},\n  archivePrefix = {{arXiv}}\n}}\n"
        for k, m in enumerate(ARXIV.finditer(story.paper))
    ]
    own = (
        "@software{saltus,\n  title = {Saltus: flow maps for PyTorch},\n"
        f"  author = {{{{The Saltus authors}}}},\n  version = {{{story.version}}}\n}}\n"
    )
    return "\n".join([*texts, own])


def _authors(who: str) -> str:
    """As BibTeX wants them.

    >>> _authors("Boffi, Albergo and Vanden-Eijnden"), _authors("Song et al.")
    ('Boffi and Albergo and Vanden-Eijnden', 'Song and others')
    """
    return who.strip("; ").replace(" et al.", " and others").replace(", ", " and ")
