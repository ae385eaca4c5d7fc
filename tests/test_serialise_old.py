"""Files of formats 1 to 3, written by older versions (models/write*.py), answer as they did."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from test_serialise import assert_same, metadata_of, rewritten

import eqdiff as eqd


MODELS = pathlib.Path(__file__).parent / "models"
ANSWERS = json.loads((MODELS / "answers.json").read_text())


def load(name: str) -> eqd.Denoiser:
    return eqd.load_model(MODELS / f"{name}.safetensors")


def test_every_file_has_an_answer_and_every_format_is_there():
    files = sorted(MODELS.glob("*.safetensors"))
    assert {file.stem for file in files} == set(ANSWERS)
    assert {metadata_of(file)["format_version"] for file in files} == {"1", "2", "3"}


def inputs(name: str):
    """The example and the class that write.py asked about."""
    if name.startswith("unet"):
        return jnp.linspace(-1, 1, 64, dtype=jnp.float32).reshape(1, 8, 8), jnp.asarray(1)
    return jnp.asarray([0.3, -0.7], jnp.float32), None


def assert_answers(denoiser, name: str) -> None:
    answer = ANSWERS[name]
    x, args = inputs(name)
    # A whole number is a step, also where it was written as one.
    t = answer["t"] if isinstance(answer["t"], int) else jnp.asarray(answer["t"], jnp.float32)
    estimate = denoiser(t, x, args)
    for field in ("x0", "noise", "raw_variance"):
        expected, found = answer[field], getattr(estimate, field)
        assert (expected is None) == (found is None)
        if expected is not None:
            expected = np.asarray(expected)
            error = np.abs(np.ravel(found) - expected).max()
            assert error <= 1e-6 * np.abs(expected).max(), (field, error)


@pytest.mark.parametrize("name", ANSWERS)
def test_it_answers_as_it_did(name, tmp_path):
    """To 1e-6 of the largest; and what is loaded is saved in today's format."""
    denoiser = load(name)
    assert_answers(denoiser, name)
    eqd.save_model(tmp_path / "model", denoiser)
    assert metadata_of(tmp_path / "model")["format_version"] == "4"
    assert_same(eqd.load_model(tmp_path / "model"), denoiser)


@pytest.mark.parametrize("name", ["continuous_schedule", "continuous_unclipped"])
def test_a_continuous_schedule_loads_as_its_schedule(name):
    make = eqd.cosine_schedule if name == "continuous_schedule" else eqd.linear_schedule
    found, expected = load(name).process, make(40)
    assert isinstance(found, eqd.Schedule)
    assert (found.t0, found.t1) == (expected.t0, expected.t1)
    np.testing.assert_allclose(found.betas, expected.betas, rtol=1e-9)
    np.testing.assert_array_equal(found.c_noises, expected.c_noises)


def copied(name: str, tmp_path):
    path = tmp_path / "model"
    path.write_bytes((MODELS / f"{name}.safetensors").read_bytes())
    return path, json.loads(metadata_of(path)["model"])


def test_a_time_input_of_another_process_is_refused(tmp_path):
    """LogNoiseLevel had a process of its own, LogNoise has the denoiser's."""
    path, model = copied("log_noise_level", tmp_path)
    model["label"]["arguments"]["process"]["arguments"] |= {"t0": 0.01, "t1": 50.0}
    rewritten(path, metadata={"model": json.dumps(model)})
    assert_answers(eqd.load_model(path), "log_noise_level")
    model["label"]["arguments"]["process"] = {"class": "eqdiff.VPSDE", "arguments": {}}
    rewritten(path, metadata={"model": json.dumps(model)})
    with pytest.raises(ValueError, match="noise level of another process than the denoiser's"):
        eqd.load_model(path)


BAD = [None, 3, "x", [], {}, {"class": 3}, {"class": "eqdiff.Noise", "arguments": 3}, {"tuple": 3}]


@pytest.mark.parametrize("part", ["net", "process", "parameterisation", "variance", "label"])
def test_damaged_parts_are_value_errors(part, tmp_path):
    """Whatever stands there instead of a part: an error that names the file, or a model."""
    path, model = copied("log_noise_level", tmp_path)
    for bad in BAD:
        rewritten(path, metadata={"model": json.dumps(model | {part: bad})})
        try:
            loaded = eqd.load_model(path)
        except ValueError as error:
            assert str(path) in str(error), (bad, error)
        else:
            assert isinstance(loaded, eqd.Denoiser) and bad is None, bad
