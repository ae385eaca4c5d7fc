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


PROCESSES = ("cosine", "linear", "vp", "sub-vp", "ve", "edm", "flow")
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
    given = (name, settings, recipe.process, None, 0.0, 1e-2)
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
