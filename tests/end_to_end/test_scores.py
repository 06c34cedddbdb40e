"""Judging images by features: what is kept, what stands beside a figure, saltus evaluate with options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import saltus.recipes.judged_images as judged
import saltus.recipes.scored as scores_of
from saltus.cli import main
from saltus.data import digits
from saltus.metrics import Moments, frechet_of_moments, kid
from saltus.recipes.cached import cache_folder
from saltus.recipes.finished import again
from saltus.recipes.gallery import Gallery
from saltus.recipes.judged_images import (
    AGREEMENT,
    FRECHET,
    INFINITY,
    KERNEL,
    ImageTruth,
    image_judge,
    image_truth,
)
from saltus.recipes.scored import Pass, scored, side_by_side
from saltus.recipes.scoring import Scoring
from saltus.recipes.system import Drawn

X, LABEL = digits()
EVERY = ("frechet", "infinity", "kid", "precision", "density", "agreement")
QUICK = Scoring(features="components", count=300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALTUS_CACHE", str(folder))
        patch.setattr("saltus.recipes.scoring.TRAINED", 60)
        yield folder


@pytest.fixture(scope="module")
def truth(cache: Path) -> ImageTruth:
    """With the small classifier, and everything that it can say."""
    scoring = Scoring(features="own", metrics=EVERY, per_class=True, resamples=20)  # type: ignore[arg-type]
    return image_truth(Gallery.of(X, LABEL, "digits"), scoring)


def noisy(size: float) -> Tensor:
    return X + size * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))


def test_worse_samples_get_worse_figures(truth: ImageTruth) -> None:
    found = [
        truth.scores(truth.features(noisy(size)), LABEL, intervals=False).figures for size in (0.1, 0.4, 1)
    ]
    for name in (FRECHET, INFINITY, KERNEL):
        assert found[0][name] < 0.5 * found[1][name] < 0.25 * found[2][name], name
    for name in ("precision", "density", "coverage", AGREEMENT):
        assert found[0][name] > found[1][name] > found[2][name], name
    assert truth.figures(Drawn(X, X, LABEL))[FRECHET] == pytest.approx(0.0, abs=1e-9)
    asked_otherwise = truth.figures(Drawn(X, X, (LABEL + 1) % 10))
    assert asked_otherwise[AGREEMENT] < 2.0 and asked_otherwise[FRECHET] == pytest.approx(0.0, abs=1e-9)


def test_a_generator_without_variety_is_seen(truth: ImageTruth) -> None:
    ones = X[LABEL == 1].repeat(10, 1, 1, 1)[: len(X)]
    found = truth.figures(Drawn(ones, ones, LABEL))
    assert found["precision"] > 0.95 and found["recall"] < 0.5 and found["coverage"] < 0.5
    assert found[FRECHET] > 1.0


def test_figures_are_those_of_the_metrics(truth: ImageTruth) -> None:
    x = noisy(0.3)
    found = truth.scores(truth.features(x), LABEL)
    assert found.intervals.keys() == {FRECHET, KERNEL, AGREEMENT}
    f, real = truth.network(x), truth.network(X)
    assert found.figures[FRECHET] == pytest.approx(
        float(frechet_of_moments(Moments.of(f), Moments.of(real))), rel=1e-6
    )
    assert found.figures[KERNEL] == pytest.approx(1000 * float(kid(f, real)), rel=1e-6)
    for c in range(10):
        apart = frechet_of_moments(Moments.of(f[LABEL == c]), Moments.of(real[LABEL == c]))
        assert found.per_class[c] == pytest.approx(float(apart), rel=1e-6, abs=1e-6)
    for name, (low, high) in found.intervals.items():
        assert low < found.figures[name] < high


def test_neither_order_nor_batches_matter(truth: ImageTruth) -> None:
    x, order = noisy(0.3), torch.randperm(len(X), generator=torch.Generator().manual_seed(2))
    f = truth.features(x)
    one = truth.scores(f, LABEL, intervals=False)
    two = truth.scores(f[order], LABEL[order], intervals=False)
    for name, value in one.figures.items():
        if name != INFINITY:  # which is fitted to random parts, others in another order
            assert two.figures[name] == pytest.approx(value, rel=1e-7), name
    parts = torch.cat([truth.network(part) for part in x.split(7)])
    assert torch.allclose(parts, f, atol=1e-5)


def test_real_images_score_near_perfection(truth: ImageTruth) -> None:
    found, noise = truth.real(), truth.figures(Drawn(X, noisy(0.3), LABEL))
    assert 0 < found[FRECHET] < 0.5 * noise[FRECHET]
    assert abs(found[KERNEL]) < 0.2 * noise[KERNEL]
    assert 85.0 < found[AGREEMENT] < 100.0  # of images that the classifier has not seen


def test_labels_are_asked_for_as_often_as_the_data_have_them(cache: Path) -> None:
    label = torch.tensor([0] * 300 + [1] * 100)
    judge = image_judge(Gallery.of(X[:400], label, "two"), scoring=Scoring(features="components", count=200))
    assert judge.labels is not None and judge.labels.bincount().tolist() == [150, 50]
    assert 60 < int(judge.labels[:100].bincount()[0]) < 90  # and the first ones are a sample of all
    assert image_judge(Gallery.of(X[:400], label), labelled=False, scoring=QUICK).labels is None


def test_statistics_are_kept_and_verified(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALTUS_CACHE", str(tmp_path))
    calls: list[int] = []

    def gallery(x: Tensor) -> Gallery:
        made = Gallery.of(x, LABEL[:500], "some")

        def counted(rows: Tensor) -> Tensor:
            calls.append(len(rows))
            return made.images(rows)

        return Gallery(made.name, made.count, made.digest, counted, made.labels, made.classes)

    def figures(x: Tensor, scoring: Scoring = QUICK) -> dict[str, float]:
        return image_truth(gallery(x), scoring).figures(Drawn(X, noisy(0.2)[:300]))

    x = X[:500]
    first = figures(x)
    seen, files = sum(calls), sorted(tmp_path.iterdir())
    assert seen == 1000 and [p.suffix for p in files] == [".safetensors"] * 2  # components, statistics
    assert "once" in capsys.readouterr().err
    assert figures(x) == first and sum(calls) == seen and not capsys.readouterr().err
    for path in files:  # damage of any kind: the file, and a number in it
        whole = path.read_bytes()
        for wrong in (whole[:-10], whole[:-4] + bytes([whole[-4] ^ 255]) + whole[-3:], b""):
            path.write_bytes(wrong)
            assert figures(x) == first
            said = capsys.readouterr().err
            assert str(path) in said and "made again" in said and said.count("\n") == 1
            assert path.read_bytes() == whole
    other = x.clone()
    other[3, 0, 4, 4] += 1.0
    network = image_truth(gallery(x), QUICK).network  # one that is no function of the data, as from a file
    means = [
        ImageTruth(gallery(z), network, QUICK, torch.device("cpu")).reference.moments.mean for z in (x, other)
    ]
    assert not torch.equal(*means)
    count = sum(calls)
    assert figures(other) != first and sum(calls) == count + 1000  # other data are other statistics
    assert figures(x, Scoring(features="components", count=300, reference=200)) != first
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_cache_that_cannot_be_written_is_told(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SALTUS_CACHE", str(tmp_path / "file"))
    truth = image_truth(Gallery.of(X[:500], name="some"), QUICK)
    assert truth.figures(Drawn(X, X[:300]))[FRECHET] >= 0.0
    assert "$SALTUS_CACHE names another folder" in capsys.readouterr().err
    monkeypatch.delenv("SALTUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "saltus"


def test_a_feature_network_and_its_file_belong_together(cache: Path) -> None:
    gallery = Gallery.of(X, LABEL)
    for scoring, message in (
        (Scoring(features="inception"), "inception needs a file: give it with --features-weights"),
        (Scoring(features="own", features_weights=Path("w.pth")), "own is made of the data"),
        (Scoring(features="inception", features_weights=Path("w.pth")), "w.pth: expected a file of weights"),
        (Scoring(features="components", per_class=True), "without labels"),
    ):
        with pytest.raises(ValueError, match=message):
            image_truth(Gallery.of(X) if scoring.per_class else gallery, scoring)


# -- the command


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    words = "run digits-lsd --steps 3 --batch 32 --size tiny --grid-every 0 --quiet --skip-evaluation --out"
    assert main([*words.split(), str(folder)]) == 0
    return folder


def evaluate(run: Path, *options: str) -> dict[str, object]:
    words = ["evaluate", str(run), "--features", "components", "--count", "60", *options]
    assert main(words) == 0
    found = json.loads((run / "scores.json").read_text())["scores"][-1]
    assert isinstance(found, dict)
    return found


def test_the_protocol_stands_beside_the_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(run, "--steps", "1", "4", "--per-class", "--metrics", "frechet", "kid", "--level", "0.9")
    text = capsys.readouterr().out
    protocol = found["protocol"]
    assert isinstance(protocol, dict)
    for name, words in protocol.items():
        assert f"{name}: {words}" in " ".join(text.split()), name
    made, _ = again(run)
    assert made.system.gallery is not None
    digest = made.system.gallery().digest
    assert protocol["real"] == f"1,797 of the 1,797 digits ({digest})"
    assert protocol["samples"].startswith("60") and protocol["weights"].startswith("ema 0.999 of digits-lsd")
    assert protocol["intervals"] == "90% by 100 resamples of the bootstrap"
    lines = found["lines"]
    assert isinstance(lines, list) and [m["label"] for m in lines] == ["1 jump", "4 jumps", "60 real images"]
    assert all(m["figures"].keys() == m["intervals"].keys() == {FRECHET, KERNEL} for m in lines[:2])
    assert lines[2]["figures"][FRECHET] < 0.2 * lines[0]["figures"][FRECHET] and not lines[2]["intervals"]
    assert "±" in text and "Fréchet distance of each class" in text and len(lines[0]["per_class"]) == 10
    assert not (run / "evaluation.json").exists()


def test_seeds_give_the_mean_and_students_interval(run: Path) -> None:
    three = evaluate(run, "--steps", "1", "--seeds", "3")["lines"][0]  # type: ignore[index]
    one = evaluate(run, "--steps", "1", "--resamples", "0")["lines"][0]  # type: ignore[index]
    values = [figures[FRECHET] for figures in three["seeds"]]
    assert len(set(values)) == 3 and values[0] == one["figures"][FRECHET] and not one["intervals"]
    assert three["figures"][FRECHET] == pytest.approx(sum(values) / 3)
    low, high = three["intervals"][FRECHET]
    assert high - low == pytest.approx(2 * 4.302653 * torch.tensor(values).std().item() / 3**0.5, rel=1e-4)
    kept = json.loads((run / "scores.json").read_text())["scores"]
    evaluate(run, "--steps", "1", "--seeds", "3")
    assert len(json.loads((run / "scores.json").read_text())["scores"]) == len(kept)


def test_samples_are_the_same_in_batches_of_any_size(run: Path) -> None:
    made, model = again(run)
    assert made.system.gallery is not None

    def samples(batch: int, seed: int = 0) -> Tensor:
        truth = image_truth(
            made.system.gallery(),  # type: ignore[misc]
            Scoring(features="components", count=50, steps=(2,), batch=batch),
        )
        with torch.no_grad():
            return torch.cat(list(Pass(made, model, truth).batches(0, seed)))

    whole = samples(50)
    for batch in (1, 7, 49, 1000):
        assert torch.allclose(samples(batch), whole, atol=1e-5), batch
    assert not torch.allclose(samples(50, seed=1), whole, atol=0.1)


def test_the_judge_draws_in_batches_what_it_draws_at_once(run: Path) -> None:
    from saltus.recipes.evaluate import Exam

    made, model = again(run)
    gallery = made.system.gallery
    assert gallery is not None
    exams = []
    for batch in (64, 1000):
        judge = image_judge(gallery(), scoring=Scoring(features="components", count=150, batch=batch))
        exam = Exam(made)
        exam.judge = judge
        exam._rng = exam._rng.rows(torch.arange(150))
        exam._x0 = exam._x0[:150]
        exams.append(exam)
    with torch.no_grad():
        for one, two in zip(*(exam.rows(model) for exam in exams), strict=True):
            assert one.label == two.label and torch.allclose(one.sample(), two.sample(), atol=1e-4)


def test_scores_by_one_protocol_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    """Those of two runs, whatever their weights and samplers; real images once; other protocols never."""
    mine = evaluate(run, "--steps", "1", "--resamples", "0", "--metrics", "frechet")
    other = json.loads(json.dumps(mine))
    other["protocol"] |= {"weights": "raw of another", "sampler": "renoise"}
    other["lines"][0]["figures"][FRECHET] = 12.5
    runs = {"one": run, "two": tmp_path, "none": tmp_path / "none"}

    def written(found: dict[str, object]) -> None:
        (tmp_path / "scores.json").write_text(json.dumps({"run": "two", "scores": [found]}))

    written(other)
    (table,) = side_by_side(runs)
    figures = [line["figures"][FRECHET] for line in mine["lines"]]  # type: ignore[attr-defined]
    assert [row[:3] for row in table.rows] == [
        ["one", "1 jump", figures[0]],
        ["two", "1 jump", 12.5],
        ["", "60 real images", figures[1]],
    ]
    assert "two: raw of another" in table.note and mine["protocol"]["real"] in table.note  # type: ignore[index]
    other["protocol"]["samples"] = "61"
    written(other)
    assert side_by_side(runs) == []
    written({"protocol": "lost"})
    with pytest.raises(ValueError, match="expected what saltus evaluate writes"):
        side_by_side(runs)


def test_what_was_interrupted_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = again(run)
    scoring = Scoring(features="components", count=40, steps=(1, 2), seeds=2)
    whole = scored(made, model, scoring, "ema")
    true, calls = Pass.score, []

    def failing(self: Pass, which: int, seed: int, progress: scores_of.Progress) -> object:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((which, seed))
        return true(self, which, seed, progress)

    monkeypatch.setattr(Pass, "score", failing)
    with pytest.raises(KeyboardInterrupt):
        scored(made, model, scoring, "ema", run)
    assert calls == [(0, 0), (0, 1), (1, 0)] and list(run.glob(".scored-*.json"))
    calls[:] = ["before"]
    found = scored(made, model, scoring, "ema", run)
    assert calls == ["before", (1, 1)] and not list(run.glob(".scored-*.json"))
    for one, two in zip(whole["lines"], found["lines"], strict=True):
        assert one["figures"] == two["figures"]
        assert {n: list(v) for n, v in one["intervals"].items()} == {
            n: list(v) for n, v in two["intervals"].items()
        }


def test_what_cannot_be_scored_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "run gaussian-lsd --steps 2 --batch 16 --size tiny --grid-every 0 --quiet --skip-evaluation --out"
    assert main([*words.split(), str(tmp_path / "plane")]) == 0
    for options, message in (
        ([str(tmp_path / "plane"), "--seeds", "2"], "gaussian is no set of images"),
        ([str(run), "--seeds", "0"], "seeds of at least 1, got 0"),
        ([str(run), "--batch", "0"], "batch of at least 1, got 0"),
        ([str(run), "--reference", "-5"], "reference of at least 20, got -5"),
        ([str(run), "--resamples", "1"], "resamples of at least 2, or 0"),
        ([str(run), "--level", "1"], "a level between 0 and 1, got 1"),
        ([str(run), "--metrics", "agreement", "--features", "components"], "can be measured, got none"),
        ([str(run), "--samplers", "teacher", "--features", "components"], "no sampler teacher"),
    ):
        assert main(["evaluate", *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.strip().splitlines()[-1].startswith("saltus: error")
    evaluate(run, "--steps", "1", "3", "--metrics", "frechet", "--resamples", "0")
    assert "steps 3: lsd is not sampled so, left out" in capsys.readouterr().err


def test_large_sets_of_pairs_are_cut(truth: ImageTruth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "KEPT", 100)
    f = truth.features(noisy(0.2))
    found = truth.scores(f, None, intervals=False).figures
    assert found[KERNEL] == pytest.approx(1000 * float(kid(f[:100], truth.reference.features)), rel=1e-9)
    assert AGREEMENT not in found
