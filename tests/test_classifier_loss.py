"""Noise-conditional classifiers against Bayes' rule for Gaussian classes."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import quick_jit

import eqdiff as eqd


SDE = eqd.VPSDE()
MEANS = np.array([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]])
DATA = eqd.GaussianMixtureDenoiser(
    SDE, np.full(3, 1 / 3), MEANS, np.tile(0.09 * np.eye(2), (3, 1, 1))
)


def bayes(t, x, args=None, *, key=None):
    """The logits of p(y|x_t), exactly: log N(x; α m_y, α² s² + σ²) and a constant."""
    alpha, sigma = SDE.alpha(t).astype(x.dtype), SDE.sigma(t).astype(x.dtype)
    distance = jnp.sum((x[None] - alpha * jnp.asarray(MEANS, x.dtype)) ** 2, axis=1)
    return -0.5 * distance / (alpha**2 * 0.09 + sigma**2)


def in_time(net):
    return eqd.Classifier(net, SDE, c_noise=lambda process, t: t)


def labelled(key, n):
    which, normal = jax.random.split(key)
    y = jax.random.randint(which, (n,), 0, 3, jnp.int32)
    return jnp.asarray(MEANS, float)[y] + 0.3 * jax.random.normal(normal, (n, 2)), y


@pytest.mark.parametrize("t", [0.2, 0.4])
def test_loss_is_the_cross_entropy_at_the_noised_example(t, getkey):
    """Bayes' classifier has the conditional entropy of the classes, and every other one more."""
    n = 2000
    x0, y = labelled(getkey(), n)
    keys = jax.random.split(getkey(), n)

    @quick_jit
    def losses(x0, y, keys):
        def mean_loss(net):
            loss = ft.partial(eqd.classifier_loss, in_time(net), jnp.asarray(t))
            return jax.vmap(lambda x, y, key: loss(x, y, key=key))(x0, y, keys)

        others = [
            lambda t, x, args, *, key: 0.5 * bayes(t, x),
            lambda t, x, args, *, key: 2 * bayes(t, x),
            lambda t, x, args, *, key: bayes(t, x) + jnp.asarray([0.5, 0.0, 0.0], x.dtype),
        ]
        return mean_loss(bayes), [jnp.mean(mean_loss(net)) for net in others]

    @quick_jit
    def entropy(x0, noise):
        logits = jax.vmap(lambda x, z: bayes(t, SDE.perturb(t, x, z)))(x0, noise)
        return jnp.mean(-jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=1))

    ours, others = losses(x0, y, keys)
    truth = entropy(labelled(getkey(), n)[0], jax.random.normal(getkey(), (n, 2)))
    error = 4 * np.std(ours) * np.sqrt(2 / n)
    assert abs(np.mean(ours) - truth) < error + 1e-6
    assert all(other > np.mean(ours) for other in others)


def test_log_probabilities_are_bayes(getkey):
    """As guidance calls it: from the mixture's densities with and without the class."""
    classifier, x = in_time(bayes), jnp.asarray([0.4, -0.3], float)
    for y in range(3):
        only = eqd.GaussianMixtureDenoiser(
            SDE, np.ones(1), MEANS[y : y + 1], 0.09 * np.eye(2)[None]
        )
        expected = only.log_prob(0.4, x) - np.log(3) - DATA.log_prob(0.4, x)
        np.testing.assert_allclose(classifier(0.4, x, y), expected, rtol=1e-4)


@pytest.mark.slow
def test_a_trained_classifier_guides_samples_into_its_class(getkey):
    """End to end: the loss in a train step, then guidance of a denoiser that knows no classes."""

    def loss_fn(net, t, x0, y, *, key):
        return eqd.classifier_loss(eqd.Classifier(net, SDE), t, x0, y, key=key), {}

    net = eqd.nn.MLP(2, 3, 32, 1, key=getkey())
    optimiser = optax.adam(1e-2)
    state = eqd.train.init(net, optimiser, timesteps=eqd.Uniform(SDE), ema=(0.95,), key=getkey())
    step = eqd.train.make_step(loss_fn, optimiser)
    for key in jax.random.split(getkey(), 150):
        state, _ = step(state, labelled(key, 256))
    classifier = eqd.Classifier(state.ema_net(), SDE)
    guided = eqd.ClassifierGuidance(DATA, classifier)
    y = jnp.arange(120, dtype=jnp.int32) % 3
    x1 = jax.random.normal(getkey(), (120, 2))
    x0 = quick_jit(jax.vmap(lambda x, y: eqd.DDIM(30)(guided, x, y)))(x1, y)
    landed = jnp.argmin(
        jnp.sum((x0[:, None] - jnp.asarray(MEANS, float)[None]) ** 2, axis=-1), axis=1
    )
    assert np.mean(np.asarray(landed) == np.asarray(y)) > 0.95
    # Where in the class they land is the data's, not a point of highest probability.
    spread = np.std(x0 - jnp.asarray(MEANS, float)[y])
    assert 0.2 < spread < 0.4


def called(net, t, args):
    return lambda: in_time(net)(t, jnp.zeros(2), args)


REFUSED = [
    (called(bayes, 0.5, 3), "expected 0 to 2"),
    (called(bayes, 0.5, -1), "expected 0 to 2"),
    (called(bayes, 0.5, None), "no class"),
    (called(bayes, 0.5, np.zeros(3)), "one-hot"),
    (called(bayes, 0.5, 1.0), "one integer"),
    (called(lambda c_noise, x, args, *, key: x[None], 0.5, 0), "vector of logits"),
    (called(bayes, 1.5, 0), "outside"),
    (
        lambda: eqd.classifier_loss(in_time(bayes), 1.5, jnp.zeros(2), 0, key=jax.random.key(0)),
        "outside",
    ),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_class_that_does_not_exist_is_nan():
    run = jax.jit(lambda y: in_time(bayes)(0.5, jnp.zeros(2), y))
    assert np.isfinite(run(2)) and np.isnan(run(3)) and np.isnan(run(-1))
