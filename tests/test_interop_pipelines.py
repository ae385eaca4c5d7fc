"""diffusers' pipelines as samplers: the samples that diffusers 0.42 drew, `make_pipelines.py`."""

import json
import pathlib
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd
from eqdiff import interop
from eqdiff.interop.diffusers._pipeline import pipeline
from eqdiff.interop.diffusers._scheduler import meaning


FOLDER = pathlib.Path(__file__).parent / "interop"
with np.load(FOLDER / "pipelines.npz") as _file:
    GOLDEN = {name: _file[name] for name in _file.files}
CASES = json.loads(str(GOLDEN["cases"]))


def _formula(c_noise, x, args=None, *, key=None):
    del args, key
    return 0.9 * x + 0.3 * jnp.sin(3 * x + c_noise.astype(x.dtype) / 200)


def _formula_with_variance(c_noise, x, args=None, *, key=None):
    return jnp.concatenate([_formula(c_noise, x), jnp.sin(x)])


def _load(scheduler, name, num_steps=None, eta=0.0):
    schedule, parameterisation, variance = meaning(scheduler)
    net = _formula_with_variance if variance.learned else _formula
    denoiser = eqd.Denoiser(net, schedule, parameterisation, variance=variance)
    return pipeline(denoiser, scheduler, name, num_steps, eta)


@pytest.mark.parametrize("i", range(len(CASES)))
def test_samples_are_those_of_diffusers(i):
    case, theirs = CASES[i], GOLDEN[f"sample{i}"]
    sampler, denoiser = _load(
        case["scheduler"], case["pipeline"], case["num_inference_steps"], case.get("eta", 0.0)
    )

    def sample(sampler, denoiser):
        draw = quick_jit(lambda x1: sampler(denoiser, x1, key=jax.random.key(0)))
        return draw(jnp.asarray(GOLDEN["x1"]))

    error = np.abs(sample(sampler, denoiser) - theirs).max() / np.abs(theirs).max()
    # diffusers' tables are float32.
    assert error < (1e-4 if case["num_inference_steps"] == 1000 else 1e-5)
    # What is close to it, but not it.
    if isinstance(denoiser, eqd.ClipDataAlone) and not isinstance(sampler, eqd.Ancestral):
        other = sample(sampler, eqd.Clip(denoiser.denoiser, denoiser.low, denoiser.high))
        assert np.abs(other - theirs).max() > 0.3
    if not isinstance(sampler, eqd.Ancestral | eqd.DDIM):
        times = sampler.grid.exact(denoiser.process)
        other = sample(eqd.DDIM(times=times, eta=sampler.eta), denoiser)
        assert np.abs(other - theirs).max() > 5e-3


def test_the_defaults_are_eqdiffs_own_samplers():
    sampler, denoiser = _load({"_class_name": "DDPMScheduler"}, None)
    assert isinstance(sampler, eqd.Ancestral) and sampler.num_calls == 1000
    assert isinstance(denoiser, eqd.ClipDataAlone) and (denoiser.low, denoiser.high) == (-1, 1)
    sampler, _ = _load({"_class_name": "DDIMScheduler"}, None, eta=0.5)
    assert isinstance(sampler, eqd.DDIM) and sampler.eta == 0.5 and sampler.random
    times = sampler.grid.exact(denoiser.process)
    np.testing.assert_array_equal(times, eqd.ddim_timesteps(1000, 50)[::-1])
    # No more steps than there are.
    assert _load({"num_train_timesteps": 10}, "DDPMPipeline")[0].num_calls == 10
    strided, _ = _load({"timestep_spacing": "trailing"}, "DDIMPipeline", 30, 0.5)
    assert strided.num_calls == 30 and strided.random


@pytest.mark.parametrize(
    ("scheduler", "name", "options", "message"),
    [
        ({}, "LDMPipeline", {}, "is a LDMPipeline, expected a DDPMPipeline or a DDIMPipeline"),
        ({"_class_name": "PNDMScheduler"}, None, {}, "PNDMScheduler, whose own steps eqdiff does"),
        ({}, "DDPMPipeline", dict(eta=0.5), "eta=0.5 is of a DDIMPipeline"),
        ({}, "DDIMPipeline", dict(eta=2.0), "expected a number between 0 and 1"),
        (
            {"_class_name": "DDIMScheduler"},
            "DDPMPipeline",
            dict(eta=1.0),
            "a DDPMPipeline gives its DDIMScheduler none",
        ),
        ({}, None, dict(num_steps=1001), "the schedule has 1000 steps"),
        ({}, None, dict(num_steps=0), "expected a positive whole number"),
        ({"timestep_spacing": "log"}, None, {}, "timestep_spacing='log', expected 'leading'"),
        ({"steps_offset": 1}, None, {}, "the first of 1000 steps is 1000, but the schedule ends"),
        ({"steps_offset": "1"}, None, {}, "steps_offset='1', expected a number"),
        ({"clip_sample_range": -1}, None, {}, "clip_sample_range=-1, expected a number above 0"),
        ({"variance_type": "fixed_large_log"}, None, {}, "square root of a negative number"),
        (
            {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
            None,
            dict(num_steps=10),
            "the last step is step 99, after which DDPMScheduler adds noise",
        ),
    ],
)
def test_what_diffusers_does_not_do_is_said(scheduler, name, options, message):
    with pytest.raises(ValueError) as error:
        _load(scheduler, name, **options)
    assert message in str(error.value)


def test_a_run_of_diffusers_is_read_by_its_checkpoint():
    """An average in several files of half precision, its own numbers among the options."""
    folder = FOLDER / "diffusers_run"
    sampler, denoiser = interop.load_diffusers_pipeline(folder / "checkpoint-500" / "unet_ema")
    # The pipeline and the scheduler are those of the run: trailing steps of a stride of one.
    assert isinstance(sampler, eqd.DDIM) and sampler.num_calls == 50
    with np.load(folder / "io.npz") as file:
        x, t, out = (jnp.asarray(file[name]) for name in ("x", "t", "out"))
    net = quick_jit(jax.vmap(denoiser.denoiser.net))
    np.testing.assert_allclose(net(t.astype(jnp.float32), x), out, atol=2e-6 * np.abs(out).max())


def test_files_of_weights(tmp_path):
    shutil.copytree(FOLDER / "diffusers_run", tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoint-500" / "unet_ema"
    index = folder / "diffusion_pytorch_model.safetensors.index.fp16.json"
    named = json.loads(index.read_text())["weight_map"]
    with pytest.raises(FileNotFoundError, match="variants 'fp16', not of 'bf16'"):
        interop.load_diffusers(folder, variant="bf16")
    shutil.copy(index, folder / "diffusion_pytorch_model.safetensors.index.ema.json")
    with pytest.raises(FileNotFoundError, match="give one of them as variant="):
        interop.load_diffusers(folder)
    one = interop.load_diffusers(folder, variant="fp16")
    # The index without a variant is the default.
    shutil.copy(index, folder / "diffusion_pytorch_model.safetensors.index.json")
    assert eqx.tree_equal(interop.load_diffusers(folder), one)
    for weight_map, message in (
        ({"a": "../x.safetensors"}, r"names '\.\./x\.safetensors', expected a file in its"),
        ({"a": "x.safetensors"}, "no file at"),
        (
            named | {"a": next(iter(named.values()))},
            "names .'a'., which",
        ),
        ([], "expected 'weight_map' with a file for each name"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            interop.load_diffusers(folder, variant="fp16")
    with pytest.raises(OSError, match="is a file, expected the folder that it is in"):
        interop.load_diffusers(index)
