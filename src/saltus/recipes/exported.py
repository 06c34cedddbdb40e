"""``saltus export`` and ``saltus ema``: one set of a run's weights, for saltus and for others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro import conf

from saltus import __version__
from saltus.export import check_folder, write_folder, write_lora
from saltus.recipes.averages import EVALUATED, RAW, Choice, known_weights, said, snapshot_files
from saltus.recipes.decoded import decoder_of
from saltus.recipes.finished import RunPath, check_out
from saltus.recipes.folder import WEIGHTS, weights_of, whole
from saltus.recipes.opened import Finished, open_run
from saltus.recipes.story import early, story_of
from saltus.training import blend, read_header, save_weights, stored_in

__all__ = ["ema", "export", "write"]

SUFFIX, PROGRAM, GRAPH = Path(WEIGHTS).suffix, ".pt2", ".onnx"
KINDS = {SUFFIX: "safetensors", PROGRAM: "torch", GRAPH: "onnx"}
"""What a name says of what is to be written."""
FOLDERS = ("diffusers", "lora")
LINKED = {"copy": False, "link": True}
WIDTHS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.13, 0.16, 0.2, 0.25)
"""Widths of which ``saltus ema`` says whether they can be formed."""
MOST = 0.1
"""The largest mismatch of a profile that is formed."""

OutPath = Annotated[Path, conf.arg(metavar="OUT")]


def export(
    run: conf.Positional[RunPath],
    out: conf.Positional[OutPath],
    *,
    to: Literal["safetensors", "diffusers", "lora", "torch", "onnx"] | None = None,
    overwrite: bool = False,
    parts: Literal["copy", "link"] = "copy",
    w: float | None = None,
    weights: Choice = Choice(),
) -> None:
    """Write one set of a run's weights, with what it takes to use them, for saltus or for other programs.

    safetensors: a file that saltus.load, saltus sample and saltus distill take in place of the run folder.
    diffusers: a folder that DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True) loads where
    there is no saltus. lora: a folder with the adapters of a student for one jump, which load_lora_weights of
    a pipeline takes. torch: a .pt2 file with one jump (x, s, t) -> X_{s,t}(x) for torch.export.load; onnx:
    the same for ONNX Runtime. Of a run that is not finished the weights are those of its newest checkpoint.

    examples:
      saltus export runs/digits-lsd digits.safetensors
      saltus export runs/digits-lsd last.safetensors --raw
      saltus export runs/digits-lsd digits-lsd --to diffusers
      saltus export runs/digits-lsd jump.pt2
      saltus export runs/stable-diffusion-v1-5-freeflow adapters --to lora --w 5

    Args:
        run: Run folder, or a weights file.
        out: The file, or the folder, to write.
        to: What to write; a name that ends in .safetensors, .pt2 or .onnx says it, too.
        overwrite: Replace a folder that was exported before.
        parts: Whether a folder holds copies of the autoencoder and the text encoders, or links to them.
        w: lora: The strength of guidance of the jump, for students that learned several.
        weights: Which of the weights that the run kept.
    """
    kind = KINDS.get(out.suffix, "safetensors") if to is None else to
    done = open_run(run, weights, unfinished=True)
    writers: dict[str, Callable[[], None]] = {
        "safetensors": lambda: write(done, out),
        "diffusers": lambda: _write_pipeline(done, run, weights, out, overwrite, LINKED[parts]),
        "lora": lambda: _write_adapters(done, run, weights, out, overwrite, w),
        "torch": lambda: _write_program(done, out, PROGRAM),
        "onnx": lambda: _write_program(done, out, GRAPH),
    }
    if overwrite and kind not in FOLDERS:
        raise ValueError("overwrite: expected it with --to diffusers or lora; a file is replaced in any case")
    if w is not None and kind != "lora":
        raise ValueError(f"w {w:g}: expected it with --to lora; elsewhere the strength stays an input")
    writers[kind]()


def ema(
    run: conf.Positional[RunPath],
    *,
    sigma_rel: float | None = None,
    out: Annotated[Path | None, conf.arg(metavar="FILE")] = None,
) -> None:
    """Form an average of any length after training, of what a run with --power-ema stored.

    The power-function average of width W over a run of N steps weighs its steps with a profile whose
    standard deviation is W N. Without a width, say which weights there are and which widths can be formed.

    examples:
      saltus run digits-lsd --power-ema 0.05 0.1
      saltus ema runs/digits-lsd
      saltus ema runs/digits-lsd --sigma-rel 0.13
      saltus evaluate runs/digits-lsd --sigma-rel 0.13

    Args:
        run: Run folder.
        sigma_rel: Width, from 0.02 to 0.28.
        out: A name that ends in .safetensors; by default power-W.safetensors in the run folder.
    """
    if sigma_rel is None:
        if out is not None:
            raise ValueError(f"out {out}: expected a width with it, got none; give --sigma-rel 0.1, say")
        _list(run)
        return
    path = out or weights_of(run).parent / f"power-{sigma_rel:g}{SUFFIX}"
    write(open_run(run, Choice(sigma_rel=sigma_rel)), path)


def write(done: Finished, out: Path) -> None:
    """Write the weights of an opened run, and what it takes to open them, to a file."""
    check_out(out, (SUFFIX,))
    if out.resolve() == done.weights.resolve():
        raise ValueError(f"out {out}: expected another file than the run's own; choose another name")
    name = RAW if done.which == RAW else EVALUATED
    save_weights(out, {name: done.model}, {**done.meta, "weights": {name: dict(done.facts)}})
    print(f"weights  {out}: {done.name}, {done.which}{early(done)}, {out.stat().st_size / 1e6:.3g} MB")


def _write_pipeline(
    done: Finished, run: Path, choice: Choice, out: Path, overwrite: bool, link: bool
) -> None:
    """The folder for diffusers."""
    check_folder(out, overwrite)
    decoder = decoder_of(done.meta)
    if decoder is not None:
        decoder = decoder_of(done.meta, Path(decoder.folder))  # which says so if it cannot be opened
    size = write_folder(
        out,
        done.model,
        done.spec.plain(),
        story_of(done, run, choice),
        done.interpolant,
        overwrite,
        link=link,
        autoencoder=None if decoder is None else Path(decoder.folder),
    )
    print(f"folder   {out}: {done.name}, {done.which}{early(done)}, {size / 1e6:.3g} MB")
    print(f"load     DiffusionPipeline.from_pretrained({str(out)!r}, trust_remote_code=True)")


def _write_adapters(
    done: Finished, run: Path, choice: Choice, out: Path, overwrite: bool, w: float | None
) -> None:
    """The folder for load_lora_weights."""
    base = (done.spec.foreign or {}).get("base")
    place = None if base is None else Path(base["folder"])
    size = write_lora(out, done.model.backbone, story_of(done, run, choice), place, w, overwrite)
    print(f"adapters {out}: {done.name}, {done.which}{early(done)}, {size / 1e6:.3g} MB")
    print(f"load     pipe.load_lora_weights({str(out)!r}), and see {out / 'README.md'}")


def _write_program(done: Finished, out: Path, suffix: str) -> None:
    """One jump for torch.export.load, or for ONNX Runtime."""
    from saltus.export.program import Jump, save_onnx, save_program

    check_out(out, (suffix,))
    if done.spec.foreign is not None:
        raise ValueError(
            f"{done.name}: expected a network of saltus, got a student of a diffusers model; export it --to "
            "diffusers"
        )
    if done.spec.tokens is not None:
        raise ValueError(
            f"{done.name}: expected a network of classes or of no condition, got one that takes texts; "
            "export it as .safetensors"
        )
    jump = Jump(done.model, done.spec.classes is not None, done.spec.guidance)
    facts = {
        "name": done.name,
        "method": done.method.name,
        "sampler": done.card.sampler.value,
        "steps": done.card.steps,
        "model": done.spec.plain(),
        "saltus": __version__,
    }
    write_to, load = {
        PROGRAM: (save_program, "torch.export.load({!r}).module()"),
        GRAPH: (save_onnx, "onnxruntime.InferenceSession({!r})"),
    }[suffix]
    with whole(out) as draft:
        write_to(draft, jump, done.shape, facts)
    taken = ", ".join(jump.example(done.shape))
    print(f"program  {out}: {done.name}, {done.which}{early(done)}, {out.stat().st_size / 1e6:.3g} MB")
    print(f"load     {load.format(str(out))}, which takes {taken}")


def _list(run: Path) -> None:
    path = weights_of(run)
    known = known_weights(read_header(path).meta, path)
    print(f"in {path}: {', '.join(said(name, facts) for name, facts in known.items())}")
    try:
        files = snapshot_files(path.parent)
    except ValueError:
        print("stored never: other averages are formed of runs that were trained with --power-ema 0.05 0.1")
        return
    stored = stored_in(files)
    last = max(step for _, step in stored)
    times = len({step for _, step in stored})
    widths = sorted({width for width, _ in stored})
    print(f"stored {times} times: power {', '.join(f'{width:g}' for width in widths)}")
    print("can be formed, and by how much the profile is missed:")
    for width in WIDTHS:
        missed = blend(stored, width, last).mismatch
        fits = f"{missed:.1%}" if missed <= MOST else f"{missed:.0%}, too much"
        print(f"  --sigma-rel {width:<6g} {fits}")
