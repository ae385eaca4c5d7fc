"""Samplers of examples/sample.py, which must fit the process of the run."""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest.importorskip("tyro")

import jax
import likelihood
import numpy as np
import sample

import eqdiff as eqd


PROCESSES = ("cosine", "linear", "vp", "sub-vp", "ve", "edm", "flow", "learned")
SHAPE = (1, 2, 2)
ADAPTIVE = [pytest.param(name, marks=pytest.mark.slow) for name in ("ode", "sde")]
SAMPLERS = ("recipe", "ancestral", "ddim", "pc", "heun", *ADAPTIVE)


def settings_of(process):
    steps = 100 if process in ("cosine", "linear") else None
    names = {"preset": None, "small": True, "num_timesteps": steps, "shape": [*SHAPE]}
    return {"process": process, "sample_steps": 100, **names}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_from_every_process_or_says_why_not(process, name):
    """From the exact denoiser of a Gaussian, of mean 0.1 and standard deviation 0.4."""
    settings = settings_of(process)
    recipe = eqd.train.recipes.named(
        process, example=SHAPE, num_timesteps=settings["num_timesteps"], small=True
    )
    # The learned process's log-SNR has one rate at first, and little noise is half of its time.
    tolerance = 1e-3 if process == "learned" else 1e-2
    given = (name, settings, recipe.process, None, 0.0, tolerance)
    if name == "ancestral" and process not in ("cosine", "linear"):
        with pytest.raises(ValueError, match=f"process is {process}"):
            sample.make_sampler(*given)
        return
    denoiser = eqd.GaussianDenoiser(recipe.process, 0.1, 0.4)
    x = eqd.generate(sample.make_sampler(*given), denoiser, 500, SHAPE, key=jax.random.key(0))
    np.testing.assert_allclose((x.mean(), x.std()), (0.1, 0.4), atol=0.07)


def test_more_steps_than_the_chain_has_are_all_of_them():
    settings, process = settings_of("cosine"), eqd.cosine_schedule(20)
    sampler = sample.make_sampler("ancestral", settings, process, 1000, 0.0, 1e-2)
    assert sampler.num_calls == 20


def test_classes_are_drawn_in_turn_or_as_asked():
    assert sample.classes(12, None, 10).tolist() == [*range(10), 0, 1]
    assert sample.classes(2, 3, 10).tolist() == [3, 3]
    assert sample.classes(2, None, None) is None
    for label, num_classes in ((3, None), (10, 10), (-1, 10)):
        with pytest.raises(ValueError, match=f"--label {label}"):
            sample.classes(2, label, num_classes)


def save(path, net, process=None):
    denoiser = eqd.Denoiser(net, process or eqd.cosine_schedule(50))
    eqd.save_model(path, denoiser)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network of grey images in three classes."""
    shape, style = (
        eqd.nn.UNetShape(1, 1, 8, 1, (1,), (), num_classes=3),
        eqd.nn.styles.iddpm(norm_groups=8),
    )
    net = eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=jax.random.key(0))
    return save(tmp_path_factory.mktemp("model") / "grey.safetensors", net)


def test_a_model_file_says_its_channels_and_classes(model, tmp_path):
    denoiser, told = sample.load_any(model, 4)
    assert told == {
        "process": None,
        "channels": 1,
        "num_classes": 3,
        "shape": [1, 4, 4],
        "levels": 256,
    }
    net = eqd.nn.DividedBySigma(
        eqd.nn.DiT(in_channels=3, channels=8, depth=1, num_heads=2, key=jax.random.key(0))
    )
    told = sample.load_file(save(tmp_path / "colour.safetensors", net, eqd.VESDE()))[1]
    assert told == {"process": None, "channels": 3, "num_classes": None}


def test_a_model_file_is_sampled(model):
    sample.main(model, num=3, num_steps=2, image_size=4)
    stem = model.with_name("grey_samples_recipe")
    with np.load(stem.with_suffix(".npz")) as arrays:
        assert arrays["arr_0"].shape == (3, 4, 4, 1) and arrays["arr_1"].tolist() == [0, 1, 2]
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileExistsError, match="--overwrite"):
        sample.main(model, num=3, num_steps=2, image_size=4)


@pytest.mark.slow
def test_a_model_file_is_scored(tmp_path, capsys):
    shape, style = eqd.nn.UNetShape(1, 1, 8, 1, (1,), ()), eqd.nn.styles.iddpm(norm_groups=8)
    net = eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=jax.random.key(0))
    path = save(tmp_path / "digits.safetensors", net)
    likelihood.main(path, num=2, bound_terms=2, tolerance=0.1, dataset="digits")
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert np.isfinite(values["bound"]) and np.isfinite(values["flow"])


def test_what_a_model_file_does_not_say_is_asked_for(model, tmp_path):
    with pytest.raises(ValueError, match="--image-size 32"):
        sample.main(model)
    with pytest.raises(ValueError, match="--dataset digits"):
        likelihood.main(model)
    with pytest.raises(ValueError, match="3 classes, but the data 10"):
        likelihood.main(model, dataset="digits")
    for program in (sample.main, likelihood.main):
        with pytest.raises(ValueError, match="a run says its own"):
            program(tmp_path, image_size=8)
    points = save(tmp_path / "points.safetensors", eqd.nn.MLP(2, 2, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="holds a MLP, expected a network of images"):
        sample.main(points, image_size=8)
    for options in ({"num": 0}, {"num_steps": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="expected at least 1"):
            sample.main(model, image_size=4, overwrite=True, **options)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        sample.load(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"settings": {"dataset": "digits"}}))
    with pytest.raises(ValueError, match="does not say levels, num_classes, process, shape"):
        sample.load(tmp_path)
    names = {"process", "dataset", "levels", "num_classes", "shape"}
    config.write_text(json.dumps({"settings": dict.fromkeys(names)}))
    with pytest.raises(FileNotFoundError, match="model.safetensors is not there yet"):
        sample.load(tmp_path)


def test_data_of_another_shape_are_refused():
    settings = dict.fromkeys(("data_dir", "image_size", "image_channels"))
    settings |= {"dataset": "digits", "shape": [3, 32, 32], "num_classes": 10}
    with pytest.raises(ValueError, match="--data-dir"):
        likelihood.held_out(settings, 2)
    data, images, labels = likelihood.held_out(settings | {"shape": [1, 8, 8]}, 2)
    assert images.shape == (2, *data.shape) and labels.shape == (2,)
