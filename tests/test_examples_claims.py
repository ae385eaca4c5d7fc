"""What examples/reproduce_iddpm measures, on stand-ins for its networks with known answers.

And the report made of it.
"""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "reproduce_iddpm"))

pytest.importorskip("tyro")

import claims
import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import report

import eqdiff as eqd


@pytest.fixture(scope="module")
def bench():
    data = eqd.data.digits()
    return claims.Bench(data, images=6, samples=40, terms=8, steps=(3, 6), seed=0)


class Shrink(eqx.Module):
    """Predicts noise, and variance outputs if asked to, with one parameter."""

    scale: jax.Array
    learned: bool = eqx.field(static=True)

    def __call__(self, c_noise, x, args=None, *, key=None):
        out = self.scale * x
        return jnp.concatenate([out, jnp.zeros_like(x)]) if self.learned else out


def shrink(schedule, *, learned=False, scale=0.9):
    variance = eqd.LearnedRange() if learned else eqd.FixedLarge()
    return eqd.Denoiser(Shrink(jnp.asarray(scale), learned), schedule, variance=variance)


def recipe_of(name, num_timesteps):
    return models.recipe_of(name, num_timesteps, eqd.train.Changes(), small=True)


@pytest.mark.slow
def test_distance_prefers_digits_to_noise(bench):
    noise = np.random.RandomState(0).uniform(-1, 1, (40, 1, 8, 8))
    real = bench.data.held_out(40)[0]
    assert bench.distance(real) < 0.2 * bench.distance(noise)


@pytest.mark.slow
def test_every_claim_can_be_measured_and_reported(bench, tmp_path):
    """Finite numbers of the right shapes, and a report that holds them all."""
    cosine, linear = eqd.cosine_schedule(30), eqd.linear_schedule(30)
    learned, fixed = shrink(cosine, learned=True), shrink(cosine)
    simple = {"linear L_simple": shrink(linear), "cosine L_simple": fixed}
    results = {
        "first_steps": claims.first_steps(bench, simple),
        "skipped_prefix": claims.skipped_prefix(bench, simple),
        "gradient_noise": {
            "weights": {
                "L_vlb": {"variance": 80.0, "noise_scale": 1234.0, "is_a_lower_bound": True},
                "L_vlb, importance": {"variance": 4.0, "noise_scale": 3, "is_a_lower_bound": False},
            }
        },
        "objectives": claims.objectives(bench, {**simple, "cosine L_hybrid": learned}),
        "fewer_steps": claims.fewer_steps(bench, learned, fixed, jax.random.key(0)),
        "real": 1.25,
    }
    results = json.loads(json.dumps(results))  # As they come back from the cache.
    assert all(len(v) == 30 for v in results["first_steps"]["terms"].values())
    assert len(results["skipped_prefix"]["cosine L_simple"]) == 7
    for name, curve in results["fewer_steps"].items():
        if name != "steps":
            assert len(curve["bits"]) == len(curve["frechet"]) == 2
            assert all(np.isfinite(b["value"]) for b in curve["bits"])
    # Steps chosen for the bound have a lower one than evenly spaced ones, here by far.
    best, even = (results["fewer_steps"][k]["bits"][0] for k in ("learned, best steps", "learned"))
    assert best["value"] < even["value"]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "vlb": 3.0}\n{"step": 2, "vlb": 2.0}\n')
    options = {"dataset": "digits", "num_timesteps": 30, "steps": 2, "images": 6, "samples": 40}
    text = report.write(tmp_path, options, results, {"cosine L_vlb": metrics}).read_text()
    assert "| weights | > 1,234 | 3 | 20 |" in text
    for picture in ("first_steps", "skipped_prefix", "training", "fewer_steps"):
        assert f"({picture}.png)" in text
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert f"{results['objectives']['cosine L_hybrid']['value']:.3f}" in text


def test_noise_scale_of_a_quadratic_is_known(bench):
    """For the loss ½‖θ − x₀‖² a gradient is θ − x₀: Σ is the covariance of the data, and G their
    distance from θ.
    """
    images, _ = bench.data.train.take(np.arange(len(bench.data.train)))
    images = bench.data.normalise(images).reshape(len(images), -1).astype(np.float64)
    theta = 2.0
    truth = images.var(axis=0).sum() / np.sum((theta - images.mean(axis=0)) ** 2)

    def quadratic(net, t, x0, args, *, key):
        return 0.5 * jnp.sum((net - x0) ** 2), {}

    net = jnp.full((1, 8, 8), theta)
    losses = {"quadratic": (quadratic, eqd.Uniform(eqd.cosine_schedule(10)), None)}
    noise = claims.gradient_noise(bench, net, losses)["quadratic"]
    np.testing.assert_allclose(noise["noise_scale"], truth, rtol=0.1)
    np.testing.assert_allclose(noise["variance"], images.var(axis=0).sum(), rtol=0.1)
    assert not noise["is_a_lower_bound"]
    # At the mean of the data there is no signal, and no more is claimed than that.
    at_mean = jnp.asarray(images.mean(axis=0).reshape(1, 8, 8), jnp.float32)
    silent = claims.gradient_noise(bench, at_mean, losses)["quadratic"]
    assert silent["noise_scale"] > 1000


@pytest.mark.slow
def test_warm_up_sees_the_losses(bench):
    """The probabilities follow the root mean square of the loss at each step, here found anew."""
    name = "cosine L_vlb, importance"
    recipe = recipe_of(name, 20)
    loss_fn = models.loss_of(name, recipe, 17)
    net = Shrink(jnp.asarray(0.9), learned=True)
    timesteps = recipe.timesteps
    state = claims.warmed_up(bench, net, loss_fn, timesteps, 5)
    actual = np.asarray(timesteps.probabilities(state))

    def square(t, x0, key):
        p = eqd.predict(shrink(eqd.cosine_schedule(20), learned=True), t, x0, key=key)
        return eqd.l_vlb(p, levels=17) ** 2

    images = jnp.asarray(bench.data.held_out(200)[0])
    keys = jax.random.split(jax.random.key(3), 200)
    roots = [
        np.sqrt(np.mean(jax.jit(jax.vmap(lambda *a, t=t: square(t, *a)))(images, keys)))
        for t in (0, 5, 19)
    ]
    np.testing.assert_allclose(
        actual[[0, 5]] / actual[19], np.array(roots[:2]) / roots[2], rtol=0.5
    )


def test_models_differ_as_they_should():
    recipes = {name: recipe_of(name, 30) for name in (*models.MODELS, models.EARLY)}
    betas = {name: np.asarray(r.process.betas) for name, r in recipes.items()}
    for name, recipe in recipes.items():
        assert np.array_equal(betas[name], betas["cosine L_vlb"]) == ("cosine" in name)
        assert recipe.variance.learned == ("L_simple" not in name)
        assert isinstance(recipe.timesteps, eqd.LossSecondMoment) == ("importance" in name)
        assert recipe.shape.num_classes is None


@pytest.mark.parametrize("name", models.MODELS)
def test_objectives_are_the_papers(name, getkey):
    """Each loss is the one in its model's name, and the bound is logged beside it."""
    recipe = recipe_of(name, 30)
    net = Shrink(jnp.asarray(0.9), learned=recipe.variance.learned)
    key, x0 = getkey(), (jnp.arange(64.0, dtype=jnp.float32) % 17 / 8 - 1).reshape(1, 8, 8)
    loss, terms = models.loss_of(name, recipe, 17)(net, jnp.asarray(7), x0, None, key=key)
    p = eqd.predict(recipe.denoiser(net), jnp.asarray(7), x0, key=key)
    simple, vlb = eqd.l_simple(p), eqd.l_vlb(p, levels=17)
    truth = {"L_simple": simple, "L_hybrid": simple + 1e-3 * vlb, "L_vlb": vlb}
    np.testing.assert_allclose(loss, truth[name.split()[1].rstrip(",")], rtol=1e-6)
    np.testing.assert_allclose(terms["vlb"], vlb, rtol=1e-6)


@pytest.mark.slow
def test_a_model_is_trained_and_found_again(tmp_path):
    name, data = "cosine L_simple", eqd.data.digits()
    changes = eqd.train.Changes(steps=2, batch_size=2, channels=8)
    recipe = models.recipe_of(name, 30, changes, small=True)
    with jax.numpy_dtype_promotion("standard"):
        first, again = (models.train(name, recipe, data, {"seed": 0}, tmp_path) for _ in range(2))
    for a, b in zip(*map(jax.tree.leaves, (first.denoiser, again.denoiser)), strict=True):
        assert np.array_equal(a, b)
    assert [m["step"] for m in eqd.train.read_metrics(first.metrics)] == [1, 2]
