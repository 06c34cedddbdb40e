"""A folder that ``diffusers.DiffusionPipeline.from_pretrained`` loads, written without diffusers.

    model_index.json               which classes, and how the map may be sampled
    saltus_pipeline_DIGEST.py      the pipeline
    flow_map/config.json           construction options
    flow_map/saltus_flow_map_DIGEST.py          the network, from the source of saltus
    flow_map/diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json
    README.md                      the model card

diffusers copies code into one flat folder of its own, by file name, and keeps what it has loaded by that
name. So the names carry a digest of the text: two folders never take each other's code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from saltus.export.bundle import bundle
from saltus.export.card import Story, model_card
from saltus.export.student import autoencoder_part, beside, network_of, second_time
from saltus.interpolants import VE, VP, Cosine, Interpolant, Linear, Trigonometric
from saltus.maps import NetworkMap
from saltus.teachers.diffusers.student import DiffusersBackbone

__all__ = ["Shipped", "check_folder", "fresh_folder", "is_own", "shipped", "write_folder"]

INDEX, CODE = "model_index.json", "shipped"
WEIGHTS = "diffusion_pytorch_model.safetensors"
CODES = ("pipeline", "network", "student", "scheduler")
FLOW_MAP, SCHEDULER = "flow_map", "scheduler"
OLDEST = "0.42.0"
"""Written as the version of diffusers where none is installed."""
NATIVE = "FlowMapEulerDiscreteScheduler"
NATIVE_FILE = Path("schedulers", "scheduling_flow_map_euler_discrete.py")
TRAIN_TIMESTEPS = 1000
INTERPOLANTS = (Linear, Trigonometric, VP, Cosine, VE)


@dataclass(frozen=True)
class Shipped:
    """A Python file that a folder carries.

    Attributes:
        module: its name, which holds a digest of its text.
        text: the source.
        kind: the class in it.
    """

    module: str
    text: str
    kind: str

    @property
    def reference(self) -> list[str]:
        """How a configuration of diffusers names the class."""
        return [self.module, self.kind]


@cache
def shipped(name: str) -> Shipped:
    """A file of :data:`CODES` with all of saltus that it needs in it."""
    stems = {
        "pipeline": ("saltus_pipeline", "SaltusPipeline"),
        "network": ("saltus_flow_map", "SaltusFlowMap"),
        "student": ("saltus_student", "SaltusStudent"),
        "scheduler": ("saltus_scheduler", "SaltusFlowMapScheduler"),
    }
    stem, kind = stems[name]
    source = (Path(__file__).parent / CODE / f"{name}.py.in").read_text(encoding="utf-8")
    foreign = "saltus.teachers.diffusers"
    text = bundle(source, without=(f"{foreign}.autoencoder", f"{foreign}.plain"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Shipped(f"{stem}_{digest}", text, kind)


def is_own(folder: Path) -> bool:
    """Whether every Python file in a folder is, to the letter, one that this version of saltus writes, and
    its index names no code elsewhere."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        modules = [str(entry[0]) for entry in index.values() if isinstance(entry, list) and entry]
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    known = {f"{f.module}.py": f.text for f in map(shipped, CODES)}
    found = {*folder.rglob("*.py"), *folder.glob("*/*.py")}  # only the second goes through links
    return (
        bool(found)
        and not any("/" in module or "\\" in module for module in modules)
        and all(p.name in known and p.read_bytes() == known[p.name].encode() for p in found)
    )


def check_folder(out: Path, overwrite: bool, mark: str = INDEX) -> None:
    """Raise a ValueError unless a folder may be written to ``out``; one with a file ``mark`` was exported."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out {out}: expected a folder, got a file; choose another name")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"out {out}: expected an existing folder {out.parent}, found none; make it first")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"out {out}: expected an empty folder, got one with files in it; give --overwrite")
    if not (out / mark).is_file():
        raise ValueError(
            f"out {out}: --overwrite replaces an exported folder, but there is no {mark} in this one; "
            "choose another name"
        )


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write to; it takes the place of ``out`` if the context ends without an
    error, and is removed otherwise."""
    out = out.resolve()
    mark = uuid.uuid4().hex[:8]
    draft, old = out.with_name(f".{mark}-{out.name}"), out.with_name(f".{mark}-old-{out.name}")
    draft.mkdir()
    try:
        yield draft
        if out.exists():
            out.rename(old)
        draft.rename(out)
    except OSError as wrong:
        why = wrong.strerror or wrong
        raise ValueError(f"out {out}: expected to write here, got {why}; choose another name") from wrong
    finally:
        if old.exists() and not out.exists():  # whatever came between the two, Ctrl-C say
            old.rename(out)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_folder(
    out: Path,
    model: NetworkMap,
    spec: Mapping[str, Any],
    story: Story,
    interpolant: Interpolant,
    overwrite: bool = False,
    native: bool | None = None,
    link: bool = False,
    autoencoder: Path | None = None,
) -> int:
    """Write the folder; it is there as a whole or not at all.

    Args:
        out: a folder that is empty or not there.
        model: the map.
        spec: its construction options, as plain data.
        story: for the model card, which also says how the map is sampled.
        interpolant: that it was trained on.
        overwrite: replace an exported folder.
        native: take diffusers' own scheduler; by default where the installed diffusers has it.
        link: refer to the folder of a student's teacher for autoencoder and text encoders; else copy them.
        autoencoder: the folder of the autoencoder of diffusers that decodes a map of latents.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: for a map of anything but images [C, H, W], a network of saltus that takes texts, an
            interpolant of the user's own, or a folder that must not be replaced.
    """
    if len(story.shape) != 3:
        raise ValueError(
            f"{story.name}: expected a map of images (C, H, W) for a pipeline of diffusers, got shape "
            f"{story.shape}; export it as .safetensors, or --to torch"
        )
    if spec.get("tokens") is not None:
        raise ValueError(
            f"{story.name}: expected a network of classes, of no condition, or of diffusers, got one of "
            "saltus that takes texts, whose encoder it does not know; export it as .safetensors"
        )
    if type(interpolant) not in INTERPOLANTS:
        raise ValueError(
            f"{story.name}: expected one of the package's interpolants, got {type(interpolant).__name__}; "
            "its functions cannot be written to a folder"
        )
    check_folder(out, overwrite)
    native = _has_native() if native is None else native
    with fresh_folder(out) as draft:
        parts: dict[str, object] = {}
        texts = None
        if isinstance(model.backbone, DiffusersBackbone):
            name, config, tensors = network_of(model.backbone, spec)
            _write_part(draft / name, config, tensors)
            parts[name] = ["diffusers", config["_class_name"]]
            config, tensors = second_time(model.backbone, spec)
            own, texts = beside(spec, draft, link)
            parts |= own
            code = shipped("student")
        else:
            config, tensors, code = {"spec": dict(spec)}, _renamed(model), shipped("network")
            if autoencoder is not None:
                parts |= autoencoder_part(autoencoder, draft, link)
        digest = _write_code(draft / FLOW_MAP, code, config, tensors)
        scheduler = _write_scheduler(draft / SCHEDULER, native)
        pipeline = shipped("pipeline")
        (draft / f"{pipeline.module}.py").write_text(pipeline.text, encoding="utf-8")
        index = {
            "_class_name": pipeline.reference,
            "_diffusers_version": _diffusers_version(),
            "facts": _facts(story, interpolant, texts),
            FLOW_MAP: code.reference,
            SCHEDULER: scheduler,
            **parts,
        }
        _write_json(draft / INDEX, index)
        said = model_card(story, out.resolve().name, digest, latents="vae" in parts, texts=texts is not None)
        (draft / "README.md").write_text(said, encoding="utf-8")
        return sum(p.stat().st_size for p in draft.rglob("*") if p.is_file())


def _facts(story: Story, interpolant: Interpolant, texts: str | None) -> dict[str, object]:
    """What the pipeline must know of the map."""
    assert isinstance(interpolant, INTERPOLANTS)
    return {
        "name": story.name,
        "method": story.method,
        "sampler": story.sampler.value,
        "steps": list(story.steps),
        "interpolant": {
            "name": type(interpolant).__name__,
            "options": asdict(interpolant) if fields(interpolant) else {},
        },
        "texts": texts,
        "saltus": story.version,
    }


def _renamed(model: NetworkMap) -> dict[str, Tensor]:
    """The map's weights by the names that the shipped network gives them."""
    return {f"flow_map.{name}": value for name, value in model.state_dict().items()}


def _write_code(folder: Path, code: Shipped, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """A part whose class is in a file of its own; returns the SHA-256 digest of its weights."""
    config = {"_class_name": code.kind, "num_train_timesteps": TRAIN_TIMESTEPS, **config}
    _write_part(folder, config, tensors)
    (folder / f"{code.module}.py").write_text(code.text, encoding="utf-8")
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_part(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A network as diffusers keeps it."""
    folder.mkdir()
    _write_json(folder / "config.json", {"_diffusers_version": _diffusers_version(), **config})
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # it is written for its owner alone


def _write_scheduler(folder: Path, native: bool) -> list[str]:
    """Returns how the index names its class."""
    folder.mkdir()
    own = shipped("scheduler")
    kind = NATIVE if native else own.kind
    config: dict[str, object] = {"_class_name": kind, "_diffusers_version": _diffusers_version()}
    config["num_train_timesteps"] = TRAIN_TIMESTEPS
    _write_json(folder / "scheduler_config.json", config)
    if native:
        return ["diffusers", NATIVE]
    (folder / f"{own.module}.py").write_text(own.text, encoding="utf-8")
    return own.reference


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _has_native() -> bool:
    """Whether the installed diffusers has a scheduler for flow maps; it is looked at, not imported."""
    spec = importlib.util.find_spec("diffusers")
    places = [] if spec is None else spec.submodule_search_locations or []
    return any((Path(place) / NATIVE_FILE).is_file() for place in places)


def _diffusers_version() -> str:
    try:
        return importlib.metadata.version("diffusers")
    except importlib.metadata.PackageNotFoundError:
        return OLDEST
