"""The tutorial does what it says: its blocks run in order, on tiny models, and what they export is the
student.

Of the first block only the names count: it gets the values below. Shell blocks run here, each ``saltus`` line
through the command; a Python block that imports saltus runs here too, and all others one after another in one
fresh process, in which saltus cannot be imported.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import saltus
from saltus.cli import main
from saltus.recipes.foreign import said_to
from saltus.recipes.opened import Finished
from saltus.teachers.diffusers import open_diffusers
from saltus.teachers.diffusers.autoencoder import open_autoencoder
from saltus.tensors import full_like_rows
from saltus.typing import Condition

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit"))
from tiny_models import save_pipeline  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"^export (\w+)=(\S+)(?:  +# .*)?$")
VALUES = {"SIZE": "16", "STEPS": "4", "BATCH": "16", "LR": "0.02", "RANK": "2"}
PLACES = ("TEXTS", "CLASSES", "PHOTOS")
UNET = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "mid_block_type": None,
}
"""Of the model of texts: no second level, which would make the page twice as slow."""
KINDS = 3
"""Classes of the tiny model."""
ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from without_saltus import Absent
sys.meta_path.insert(0, Absent())
for path in sys.argv[2:]:
    exec(compile(open(path).read(), path, "exec"), {})
"""
LATENTS = """
import os
import numpy as np, torch
from diffusers import DDIMScheduler, DiffusionPipeline
x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
pipe = DiffusionPipeline.from_pretrained("one-step", trust_remote_code=True)
ours = pipe(prompt="a cat", guidance_scale=5.0, latents=x, output_type="latent").images
pipe = DiffusionPipeline.from_pretrained(os.environ["TEXTS"])
pipe.load_lora_weights("adapters")
pipe.scheduler = DDIMScheduler.from_config(
    pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
)
told = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "latents": x}
adapted = pipe(["a cat", "a cat"], **told).images
np.savez("latents.npz", x0=x, folder=ours, adapters=adapted)
"""


@dataclass(frozen=True)
class Ran:
    """The folder that the page has left, and the models that it began with."""

    at: Path
    places: dict[str, Path]

    def student(self) -> tuple[Finished, Condition]:
        """That of texts, and "a cat" at the strength that the page draws with, of two rows."""
        done = saltus.load(self.at / "runs" / "texts")
        cond = said_to(done, "a cat").rows(torch.zeros(2, dtype=torch.int64))
        return done, Condition(**{**vars(cond), "w": torch.full((2,), 5.0)})


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def shell(text: str) -> None:
    """Run a block of shell: lines of saltus through its command, the rest by bash."""
    lines = text.replace("\\\n", " ").splitlines()
    if not any(line.startswith("saltus ") for line in lines):
        subprocess.run(["bash", "-euc", text], check=True)
        return
    for line in lines:
        assert line.startswith("saltus "), "a block is of saltus or of other commands"
        words = shlex.split(os.path.expandvars(line), comments=True)
        assert not any("$" in w for w in words), line
        assert main(words[1:]) == 0, line


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in range(KINDS):
        (folder / str(kind)).mkdir(parents=True)
        for k in range(6):
            pixels = rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(kind) / f"{k}.png")
    return folder


def alone(at: Path, codes: list[str]) -> None:
    """Run Python blocks where there is no saltus."""
    paths = []
    for k, code in enumerate(codes):
        paths.append(at / f"block-{k}.py")
        paths[-1].write_text(code)
    env = {**os.environ, "HF_HOME": str(at / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALONE, str(HERE), *map(str, paths)]
    ended = subprocess.run(command, cwd=at, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The whole page, block after block."""
    root = tmp_path_factory.mktemp("tutorial")
    places = {
        "TEXTS": save_pipeline("SD1.5", root / "texts", **UNET),
        "CLASSES": save_pipeline("DiT", root / "classes", num_layers=1, num_embeds_ada_norm=KINDS),
        "PHOTOS": pictures(root / "photos"),
    }
    at = root / "work"
    at.mkdir()
    (first, settings), *rest = blocks()
    names = [found[1] for found in map(SETTING.match, settings.splitlines()) if found]
    assert first == "bash" and len(names) == len(settings.splitlines())
    assert set(names) == {*places, *VALUES}
    kept: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        patch.delenv("SALTUS_DEBUG", raising=False)
        for name, value in {**{n: str(p) for n, p in places.items()}, **VALUES}.items():
            patch.setenv(name, value)
        for language, text in rest:
            if language == "bash":
                shell(text)
            elif "import saltus" in text:
                exec(compile(text, str(PAGE), "exec"), {})
            else:
                assert language == "python", "every block of the page is run"
                kept.append(text)
        alone(at, [*kept, LATENTS])
        yield Ran(at, places)


def test_the_page_leaves_what_it_says(ran: Ran) -> None:
    for name in ("cat.png", "cat-by-adapters.png", *(f"class-0-in-{k}.png" for k in (1, 2, 4))):
        with Image.open(ran.at / name) as picture:
            assert picture.size == (16, 16) and picture.mode == "RGB", name
    for name in ("runs/texts/report.html", "runs/classes/evaluation.json", "comparison.png", "dogs.png"):
        assert (ran.at / name).stat().st_size > 0, name
    drawn = np.load(ran.at / "samples.npy")
    assert drawn.shape == (3, 2, 4, 8, 8)  # which the page has held against the folder for diffusers
    done = saltus.load(ran.at / "runs" / "classes")
    x0, zero, cond = done.noise(2), torch.zeros(2), Condition(label=torch.tensor([0, 1]))
    with torch.no_grad():
        euler = x0 + done.model.velocity(x0, zero, cond)
    assert np.abs(euler.numpy() - drawn[0]).max() > 1e-4 * np.abs(drawn[0]).max()  # it has a second time
    assert min(np.abs(drawn[i] - drawn[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_the_text_student_is_the_same_in_its_folder_and_as_adapters(ran: Ran) -> None:
    done, cond = ran.student()
    found = {name: torch.from_numpy(v) for name, v in np.load(ran.at / "latents.npz").items()}
    x0 = found["x0"]
    zero = torch.zeros(2)
    with torch.no_grad():
        wanted = done.model(x0, zero, zero + 1.0, cond)
        still = x0 + done.model.velocity(x0, zero, cond)
    size = float(wanted.abs().max())
    for name in ("folder", "adapters"):
        assert float((found[name] - wanted).abs().max()) < 1e-5 * size, name
    assert float((still - wanted).abs().max()) > 1e-4 * size  # the second time is in both
    base = open_diffusers(ran.places["TEXTS"]).velocity()
    with torch.no_grad():
        taught = x0 + base(x0, zero, Condition(**{**vars(cond), "w": None}))
    assert float((taught - wanted).abs().max()) > 1e-4 * size


def test_pictures_are_decoded_alike(ran: Ran) -> None:
    done, cond = ran.student()
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one = full_like_rows(1.0, x0)
    with torch.no_grad():
        x1 = done.model(x0, 0.0 * one, one, cond.rows(torch.tensor([0])))
        pixels = open_autoencoder(ran.places["TEXTS"]).decode(x1)[0]
    wanted = (255.0 * (pixels / 2.0 + 0.5).clamp(0.0, 1.0)).permute(1, 2, 0).numpy()
    for name in ("cat-by-adapters.png",):
        with Image.open(ran.at / name) as picture:
            assert np.abs(np.asarray(picture) - wanted).max() <= 0.51, name
