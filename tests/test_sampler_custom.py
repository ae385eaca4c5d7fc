"""Samplers, predictors and constraints of one's own: a few lines each, as the docs promise."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from toys import quick_jit

import eqdiff as eqd


DENOISER = eqd.GaussianDenoiser(eqd.cosine_schedule(50), np.array([0.5, -1.0]), 0.4)
X1 = np.array([0.7, -1.3])


class Jump(eqd.AbstractChain):
    """DDIM in three lines."""

    grid: eqd.Grid
    random: ClassVar[bool] = False
    num_calls: ClassVar[None] = None

    def step(self, denoiser, step, x, args, *, key):
        e = denoiser(step.t, x, args)
        return step.alpha_s * e.x0 + step.sigma_s * e.noise, e.x0


class JumpPredictor(eqd.AbstractPredictor):
    """The same as a predictor."""

    def __call__(self, denoiser, step, x, args, *, key):
        e = denoiser(step.t, x, args)
        x = step.alpha_s * e.x0 + step.sigma_s * e.noise
        return x, x, e.x0

    def num_calls(self, num_steps):
        return num_steps


class Brightness(eqd.AbstractConstraint):
    """The mean of the sample is known."""

    mean: float

    def __call__(self, step, x, x0, *, key):
        noise = step.sigma_s / np.sqrt(x.size) * jax.random.normal(key, (), x.dtype)
        return x - jnp.mean(x) + step.alpha_s * self.mean + noise


def run(sampler, key=None):
    return quick_jit(lambda x: sampler.trajectory(DENOISER, x, key=key))(jnp.asarray(X1, float))


def test_a_chain_and_a_predictor():
    for grid, kwargs in (
        (eqd.Grid(7), dict(num_steps=7)),
        (eqd.Grid(7, spacing=eqd.karras_times), dict(num_steps=7, spacing=eqd.karras_times)),
        (eqd.Grid(times=np.array([40, 11, 2])), dict(times=np.array([40, 11, 2]))),
    ):
        expected = run(eqd.DDIM(**kwargs))
        predicted = eqd.PredictorCorrector(predictor=JumpPredictor(), corrector=None, **kwargs)
        for path in (run(Jump(grid)), run(predicted, jax.random.key(0))):
            np.testing.assert_array_equal(path.t, expected.t)
            np.testing.assert_allclose(path.x, expected.x, rtol=1e-5, atol=1e-6)


def test_a_constraint():
    constraint, key = Brightness(0.25), jax.random.key(0)
    for sampler in (
        eqd.Constrained(Jump(eqd.Grid(6)), constraint, repeats=2),
        eqd.PredictorCorrector(6, constrain=constraint),
    ):
        path = run(sampler, key)
        np.testing.assert_allclose(path.x[-1].mean(), 0.25, rtol=1e-5)
        # Only the mean was touched.
        np.testing.assert_allclose(np.diff(path.x[-1]), np.diff(path.x0[-1]), rtol=1e-5)
