"""Exported maps give the numbers of saltus where there is no saltus."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import saltus
from saltus.cli import main
from saltus.export import folder as exporting
from saltus.export import program
from saltus.export.bundle import bundle
from saltus.maps import EDM
from saltus.nn import BACKBONES
from saltus.nn.attention import SelfAttention
from saltus.nn.embeddings import Conditioning
from saltus.recipes.averages import EVALUATED
from saltus.recipes.model import ModelSpec
from saltus.recipes.sampling import draw
from saltus.samplers import prior
from saltus.tensors import full_like_rows
from saltus.training import initialised, save_weights
from saltus.typing import Condition

ROWS, SEED = 3, 7
HERE = Path(__file__).parent
CLASSES = {"classes": 10}

# folder -> method, construction options, what is asked of the pipeline, step counts
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "jumps": (
        "lsd",
        {"backbone": "dit", **CLASSES, "guidance": True},
        {"class_labels": [4, 0, 9], "guidance_scale": 2.5},
        (1, 2, 4),
    ),
    "renoise": ("scm", {"backbone": "unet", "parametrisation": "trigonometric", **CLASSES}, {}, (1, 2, 4)),
    "ode": ("flow_matching", {"backbone": "residual-mlp", "shape": (3, 8, 8)}, {}, (1, 2, 4)),
    "edm": ("ect", {"backbone": "dit", "parametrisation": "edm"}, {"class_labels": None}, (1, 2, 4)),
    **{name: ("lsd", {"backbone": name, **CLASSES}, {}, (2,)) for name in sorted(BACKBONES)},
}


def made(path: Path, method: str, spec: ModelSpec, **more: object) -> Path:
    """A weights file with random weights, none of them zero; more is said in its header."""
    model = initialised(0, spec.build)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=random)
    meta = {"model": spec.plain(), "method": method, "recipe": "digits", "plain": False, "dropout": 0.1}
    meta |= {"guidance": 3.0 if spec.guidance else None, "weights": {EVALUATED: {"decay": 0.999}}}
    save_weights(path, {EVALUATED: model}, meta | more)
    return path


def truth(path: Path, asked: dict[str, Any], steps: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What saltus draws, with the noise that it took."""
    done = saltus.load(path)
    rng = done._rows(ROWS, SEED)
    labels = done.labels(ROWS) if asked.get("class_labels") is None else torch.tensor(asked["class_labels"])
    w = asked.get("guidance_scale")
    cond = None
    if labels is not None:
        cond = Condition(label=labels, w=None if w is None else full_like_rows(w, labels.float()))
    x0 = prior(rng, done.shape, done.interpolant)
    samples = {str(k): draw(done.model, done.card, x0, k, cond, rng, done.interpolant) for k in steps}
    noises = torch.stack([rng.normal(f"renoise/{i}", *done.shape) for i in range(max(steps))])
    given = {"x0": rng.normal("prior", *done.shape), "noises": noises}
    return {k: v.numpy() for k, v in (given | samples).items()}


def jump(path: Path) -> dict[str, np.ndarray]:
    """One jump of saltus, arguments first; other rows than those that were traced."""
    done = saltus.load(path)
    x, s = done.noise(5), torch.linspace(0.0, 0.6, 5)
    given = {"x": x, "s": s, "t": s + 0.4}
    label = w = None
    if done.spec.classes:
        label = given["label"] = torch.tensor([1, 2, 3, 4, 9])
    if done.spec.guidance:
        w = given["w"] = torch.linspace(1.0, 3.0, 5)
    cond = None if label is None else Condition(label=label, w=w)
    answer = done.model(x, s, given["t"], cond)
    return {k: v.numpy() for k, v in (given | {"answer": answer}).items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with every case exported, and what saltus draws."""
    place = tmp_path_factory.mktemp("exported")
    cases = {}
    for name, (method, options, asked, steps) in CASES.items():
        spec = ModelSpec(**{"shape": (1, 8, 8), "size": "tiny", "sigma_data": 0.75, **options})
        path = made(place / f"{name}.safetensors", method, spec)
        np.savez(place / f"{name}.npz", **truth(path, asked, steps))
        cases[name] = {"asked": asked, "steps": steps, "truth": name}
        exported(place, name, name)
    for name in ("jumps", "renoise", "ode"):
        assert main(["export", str(place / f"{name}.safetensors"), str(place / f"jump-{name}.pt2")]) == 0
        np.savez(place / f"jump-{name}.npz", **jump(place / f"{name}.safetensors"))
    twisted(place)
    (place / "cases.json").write_text(
        json.dumps({**cases, "shipped": cases["renoise"], "twisted": cases["jumps"]})
    )
    yield place


def exported(place: Path, case: str, folder: str) -> None:
    """A case written to a folder by the command."""
    weights, out = place / f"{case}.safetensors", place / folder
    assert main(["export", str(weights), str(out), "--to", "diffusers"]) == 0


def twisted(place: Path) -> None:
    """Two folders more: one with the scheduler that we ship, one with other code than ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_has_native", lambda: False)
        exported(place, "renoise", "shipped")
        patch.undo()

        def other(text: str, without: tuple[str, ...]) -> str:
            return bundle(text, without).replace("h * (1.0 + scale", "h * (2.0 + scale")

        patch.setattr(exporting, "bundle", other)
        exporting.shipped.cache_clear()
        exported(place, "jumps", "twisted")
    exporting.shipped.cache_clear()


def alone(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A process that cannot reach the Hub and keeps its code in the folder."""
    env = {**os.environ, "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=place, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def seen(place: Path) -> dict[str, Any]:
    """What a process without saltus sees."""
    ended = alone(place, str(HERE / "without_saltus.py"), str(place))
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads((place / "seen.json").read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_folder_draws_what_saltus_draws(seen: dict[str, Any], place: Path, name: str) -> None:
    moved = np.load(place / f"{name}.npz")
    assert set(seen[name]) == {str(k) for k in CASES[name][3]}
    assert max(seen[name].values()) <= 1e-5
    for k in seen[name]:  # and not because the network does nothing
        assert np.abs(moved[k] - moved["x0"]).max() > 0.05


def test_the_scheduler_that_is_shipped_is_as_good(seen: dict[str, Any], place: Path) -> None:
    assert json.loads((place / "shipped" / "model_index.json").read_text())["scheduler"][0] != "diffusers"
    assert json.loads((place / "renoise" / "model_index.json").read_text())["scheduler"][0] == "diffusers"
    assert max(seen["shipped"].values()) <= 1e-5


def test_two_folders_keep_their_own_code_in_one_process(seen: dict[str, Any]) -> None:
    assert min(seen["twisted"].values()) > 0.1
    assert max(seen["again"].values()) <= 1e-5


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("trust", "trust_remote_code=True"),
        ("steps", "expected one of 1, 2, 4, 8, 16 with lsd, got 3"),
        ("label", "expected 0 to 9, or 10 for none, got [11]"),
        ("labels", "the map knows no classes"),
        ("guidance", "the map learned no guidance"),
        ("latents", "expected [2, 3, 8, 8], got [2, 1, 8, 8]"),
        ("counts", "got 2 by class_labels, 3 by batch_size"),
        ("type", "expected one of pil, np, pt, latent, got 'jpeg'"),
    ],
)
def test_a_request_that_makes_no_sense_is_told(seen: dict[str, Any], what: str, said: str) -> None:
    assert said in seen["wrong"][what]


def test_images_are_what_the_numbers_say(seen: dict[str, Any]) -> None:
    found = seen["looks"]
    assert found["np"] == found["pt"] == 0.0
    assert found["pil"] <= 0.5 / 255 + 1e-6 and found["mode"] == "L"
    assert found["half"] < 0.05 and found["half type"] == "torch.float32"
    assert found["unconditional"] == 0.0 and found["conditional"] > 1e-3
    assert found["guided without labels"] == 0.0 and found["guided"] > 1e-3


@pytest.mark.parametrize("name", ["jump-jumps", "jump-renoise", "jump-ode"])
def test_a_program_jumps_as_saltus_jumps(seen: dict[str, Any], name: str) -> None:
    assert seen["programs"][name] <= 1e-6


def test_the_example_of_a_card_ran(seen: dict[str, Any], place: Path) -> None:
    assert (place / "sample.png").stat().st_size > 0 and seen


PLAINLY = """
import sys
from pathlib import Path
import numpy as np, torch
import saltus.export.pipelines
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("edm")
truth = np.load("edm.npz")
x = pipe(latents=torch.from_numpy(truth["x0"]), output_type="latent").images
assert np.abs(x.numpy() - truth["1"]).max() <= 1e-5
Path("elsewhere.py").write_text("print(1)")
for folder, more in (("twisted", {}), ("edm", {"custom_pipeline": "elsewhere.py"})):
    try:
        DiffusionPipeline.from_pretrained(folder, **more)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
    else:
        sys.exit(4)
"""


def test_with_saltus_imported_known_code_needs_no_consent_and_other_code_does(place: Path) -> None:
    ended = alone(place, "-c", PLAINLY)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_code_that_lies_elsewhere_is_not_known(tmp_path: Path) -> None:
    """Behind a link, or at the end of a path in the index: that is not saltus's own."""
    pipeline = exporting.shipped("pipeline")
    other = tmp_path / "other"
    other.mkdir()
    (other / "code.py").write_text("raise SystemExit\n")

    def folder(name: str, **more: object) -> Path:
        made = tmp_path / name
        made.mkdir()
        (made / f"{pipeline.module}.py").write_text(pipeline.text, encoding="utf-8")
        (made / "model_index.json").write_text(json.dumps({"_class_name": pipeline.reference, **more}))
        return made

    plain, linked = folder("plain", vae=["diffusers", "AutoencoderKL"]), folder("linked", vae=["code", "X"])
    (linked / "vae").symlink_to(other)
    assert exporting.is_own(plain) and not exporting.is_own(linked)
    assert not exporting.is_own(folder("above", vae=["../../other/code", "X"]))
    assert not exporting.is_own(folder("pipeline", _class_name=["../other/code", "X"]))
    assert not exporting.is_own(other)


def test_onnx_runtime_jumps_as_saltus_jumps(place: Path) -> None:
    path = place / "jumps.onnx"
    assert main(["export", str(place / "jumps.safetensors"), str(path)]) == 0
    given = jump(place / "jumps.safetensors")
    answer = given.pop("answer")
    runtime = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [i.name for i in runtime.get_inputs()] == list(given)
    assert np.abs(runtime.run(None, given)[0] - answer).max() <= 1e-5
    assert json.loads(runtime.get_modelmeta().custom_metadata_map["saltus"])["name"].startswith("digits-")


def test_onnx_that_answers_otherwise_is_not_left(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other:
        def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [given["x"]]

    monkeypatch.setattr(program, "session", lambda content, path: Other())
    assert main(["export", str(weights), str(tmp_path / "x.onnx")]) == 2
    assert "expected PyTorch's answer" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_the_networks_are_the_packages_own_text() -> None:
    text = exporting.shipped("network").text
    assert "saltus import" not in text and "import saltus" not in text
    for kind in (*BACKBONES.values(), EDM, Conditioning, SelfAttention):
        assert inspect.getsource(kind.forward) in text


def test_two_definitions_of_one_name_are_told_apart() -> None:
    text = bundle(
        '"""Two."""\n\nfrom saltus.interpolants import Trigonometric\nfrom saltus.maps import '
        "Trigonometric as Map\n\nLinear = (Trigonometric, Map)\n"
    )
    names: dict[str, Any] = {"__name__": "bundled"}
    sys.modules["bundled"] = ModuleType("bundled")
    exec(compile(text, "bundled", "exec"), names)
    del sys.modules["bundled"]
    path, flow_map = names["Linear"]
    assert float(path()(torch.tensor([1.0])).beta) == 1.0
    assert issubclass(flow_map, torch.nn.Module) and "sigma_data" in inspect.signature(flow_map).parameters


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of a small map."""
    spec = ModelSpec(shape=(1, 8, 8), backbone="mlp", size="tiny")
    return made(tmp_path / "small.safetensors", "lsd", spec)


def test_a_folder_is_replaced_only_on_demand_and_only_if_it_was_exported(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    command = ["export", str(weights), str(out), "--to", "diffusers"]
    assert main(command) == 0
    (out / "mark").touch()
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err and (out / "mark").exists()
    assert main([*command, "--overwrite"]) == 0 and not (out / "mark").exists()
    other.mkdir()
    (other / "thesis.tex").touch()
    assert main(["export", str(weights), str(other), "--to", "diffusers", "--overwrite"]) == 2
    assert "no model_index.json" in capsys.readouterr().err and (other / "thesis.tex").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out", "small.safetensors"]


def test_nothing_is_left_of_an_export_that_fails(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "model_card", full)
    assert main(["export", str(weights), str(tmp_path / "out"), "--to", "diffusers"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_an_exported_folder_is_there_whenever_its_replacement_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mark").touch()
    rename = Path.rename

    def pressed(path: Path, to: Path) -> Path:
        if (path / "new").exists():
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", pressed)
    with pytest.raises(KeyboardInterrupt), exporting.fresh_folder(out) as draft:
        (draft / "new").touch()
    assert (out / "mark").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_points_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = made(tmp_path / "points.safetensors", "lsd", ModelSpec(shape=(2,), size="tiny"))
    assert main(["export", str(weights), str(tmp_path / "out"), "--to", "diffusers"]) == 2
    assert "expected a map of images" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_card_tells_what_was_measured(weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    weights.rename(run / "model.safetensors")
    lines = [{"label": "1 jump", "group": "own", "steps": 1, "figures": {"Fréchet": 1.25}, "ms": 1.0}]
    (run / "evaluation.json").write_text(json.dumps({"run": "digits-lsd", "protocol": "PCA", "lines": lines}))
    scored = {"label": "1 jump", "group": "own", "steps": 1, "figures": {"KID": 0.5}}
    of = {"weights": "ema 0.999 of digits-lsd after 9 steps", "samples": "500"}
    other = {**of, "weights": "raw of digits-lsd after 9 steps", "samples": "400"}
    kept = [{"protocol": p, "lines": [scored]} for p in (of, other)]
    (run / "scores.json").write_text(json.dumps({"run": "digits-lsd", "scores": kept}))
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    saved = (tmp_path / "out" / "flow_map" / "diffusion_pytorch_model.safetensors").read_bytes()
    for part in (
        "| sampler | Fréchet |\n| --- | ---: |\n| 1 jump | 1.25 |",
        "Protocol: PCA",
        "| 1 jump | 0.500 | – |\n\n- weights: ema 0.999 of digits-lsd after 9 steps\n- samples: 500",
        "Boffi, Albergo and Vanden-Eijnden 2025, arXiv 2505.18825",
        "eprint = {2505.18825}",
        "`num_inference_steps` is 1, 2, 4, 8 or 16",
        hashlib.sha256(saved).hexdigest(),
        "Not stated by the run",
    ):
        assert part in card, card
    assert "400" not in card
