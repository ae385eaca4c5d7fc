"""Predictor–corrector sampling on exact denoisers: laws, limits, invariances, refusals."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import BatchLangevin, step_between
from toys import quick_jit

import eqdiff as eqd


MEAN, STD = np.array([0.5, -1.0]), np.array([0.3, 1.2])
X1 = np.array([0.7, -1.3])
SMOOTH = eqd.VPSDE(0.1, 5.0, t0=0.05)


def gaussian(process, **kwargs):
    return eqd.GaussianDenoiser(process, MEAN, STD, **kwargs)


@pytest.fixture
def same_noise(monkeypatch):
    """Every draw is the same vector, so that samplers that derive keys differently compare."""

    def normal(key, shape=(), dtype=float):
        return jnp.broadcast_to(jnp.asarray([0.4, -1.1], dtype), shape)

    monkeypatch.setattr(jax.random, "normal", normal)


@pytest.mark.parametrize("variance", [eqd.FixedSmall(), eqd.FixedLarge()])
def test_ancestral_predictor_is_ancestral_on_a_schedule(variance, same_noise, x64):
    denoiser = gaussian(eqd.cosine_schedule(40), variance=variance)
    key, x1 = jax.random.key(0), jnp.asarray(X1)
    sampler = eqd.PredictorCorrector(40, predictor=eqd.AncestralPredictor(), corrector=None)
    ours = quick_jit(lambda: sampler.trajectory(denoiser, x1, key=key))()
    theirs = quick_jit(lambda: eqd.Ancestral().trajectory(denoiser, x1, key=key))()
    np.testing.assert_array_equal(ours.t, theirs.t)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-8)
    np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-8)


@pytest.mark.parametrize(
    "process", [eqd.VPSDE(), eqd.SubVPSDE(), eqd.VESDE()], ids=["vp", "subvp", "ve"]
)
def test_ancestral_predictor_is_ddim_with_all_its_noise(process, same_noise, x64):
    denoiser, key = gaussian(process), jax.random.key(0)
    predictor = eqd.AncestralPredictor(eqd.FixedSmall())
    sampler = eqd.PredictorCorrector(12, predictor=predictor, corrector=None)
    x1 = jnp.asarray(X1) * process.prior_scale()
    ours = quick_jit(lambda: sampler(denoiser, x1, key=key))()
    theirs = quick_jit(lambda: eqd.DDIM(12, eta=1.0)(denoiser, x1, key=key))()
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_diffrax_euler_is_euler_maruyama(same_noise, x64):
    """An increment of a Brownian path over [−t, −s] is √(t − s) z, drawn by `normal` as well."""
    denoiser, key = gaussian(SMOOTH), jax.random.key(0)
    samples = [
        quick_jit(
            lambda p=p: eqd.PredictorCorrector(9, predictor=p)(denoiser, jnp.asarray(X1), key=key)
        )()
        for p in (eqd.EulerMaruyama(), eqd.DiffraxPredictor(diffrax.Euler()))
    ]
    np.testing.assert_allclose(samples[0], samples[1], rtol=1e-10)


@pytest.mark.parametrize(
    "predictor", [eqd.ReverseDiffusion(0.0), eqd.EulerMaruyama(0.0)], ids=["reverse", "euler"]
)
def test_without_noise_it_is_the_probability_flow(predictor, x64):
    """First order, to Gaussian data's flow x(s) = α_s m + √(C_s/C_t)(x − α_t m), C = α² S + σ²."""
    denoiser, errors = gaussian(SMOOTH), []

    def moments(t):
        alpha, sigma = float(SMOOTH.alpha(t)), float(SMOOTH.sigma(t))
        return alpha * MEAN, np.sqrt(alpha**2 * STD**2 + sigma**2)

    (m1, c1), (m0, c0) = moments(SMOOTH.t1), moments(SMOOTH.t0)
    exact = m0 + c0 / c1 * (X1 - m1)
    for n in (64, 256):
        sampler = eqd.PredictorCorrector(n, predictor=predictor, corrector=None)
        path = quick_jit(
            lambda s=sampler: s.trajectory(denoiser, jnp.asarray(X1), key=jax.random.key(0))
        )()
        errors.append(np.abs(path.x[-2] - exact).max())
    assert abs(np.log(errors[0] / errors[1]) / np.log(4) - 1) < 0.1


@pytest.mark.parametrize("corrector", [eqd.AnnealedLangevin(0.3, 5), eqd.Langevin(0.1, 5)])
def test_corrector_by_recursion(corrector, same_noise, x64):
    """Gaussian data: s(x) = −(x − αm)/C, and the step sizes by hand, at the sub-VP time 0.3."""
    process = eqd.SubVPSDE()
    times = jnp.array([0.3, 0.2])
    (alpha, sigma), end_alpha = (
        (float(f(0.3)) for f in (process.alpha, process.sigma)),
        process.alpha(0.2),
    )
    a, z = alpha / float(end_alpha), np.array([0.4, -1.1])
    x = X1
    for _ in range(5):
        score = -(x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        norm = max(np.linalg.norm(score), 0.25 * np.sqrt(2) / sigma)
        ratio = sigma if isinstance(corrector, eqd.AnnealedLangevin) else np.sqrt(2) / norm
        size = 2 * a**2 * (corrector.snr * ratio) ** 2
        x = x + size * score + np.sqrt(2 * size) * z
    sampler = eqd.PredictorCorrector(predictor=None, corrector=corrector, times=times)
    path = quick_jit(
        lambda: sampler.trajectory(gaussian(process), jnp.asarray(X1), key=jax.random.key(0))
    )()
    np.testing.assert_allclose(path.x[0], x, rtol=1e-7)


def test_step_stays_bounded_where_the_score_vanishes():
    """At the mode of the data the published rule would divide by 0; here ε ≤ 32 r² σ²."""
    corrector, noise = eqd.Langevin(0.1), jnp.ones(4)
    step = step_between(eqd.EDMSDE(), 0.5, 0.4, False)
    np.testing.assert_allclose(corrector.size(step, noise, 0 * noise), 32 * 0.01 * 0.25, rtol=1e-6)
    far = corrector.size(step, noise, 10 * noise)
    np.testing.assert_allclose(far, 2 * (0.1 * 2 / 20) ** 2, rtol=1e-6)


def test_a_sample_does_not_depend_on_its_batch(x64):
    """Unlike the published ones, whose corrector takes the mean norms of a batch."""
    denoiser, keys = gaussian(SMOOTH), jax.random.split(jax.random.key(0), 3)
    x1 = jax.random.normal(jax.random.key(1), (3, 2))
    for corrector, alike in ((eqd.Langevin(0.2), True), (BatchLangevin(0.2, 1), False)):
        sampler = eqd.PredictorCorrector(4, corrector=corrector)

        def draw(x, k, s=sampler):
            return s(denoiser, x, key=k)

        batch = quick_jit(jax.vmap(draw, axis_name="batch"))
        three, two = batch(x1, keys), batch(x1[:2], keys[:2])
        assert np.allclose(three[:2], two, rtol=1e-9) == alike


PROCESSES = {
    "vp": eqd.VPSDE(t0=1e-3),
    "ve": eqd.VESDE(sigma_max=20.0),
    "subvp": eqd.SubVPSDE(t0=1e-3),
    "schedule": eqd.cosine_schedule(1000),
}


def energy_distance(x, y):
    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1).mean()

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@pytest.mark.parametrize("name", PROCESSES)
def test_samples_of_a_mixture(name, x64):
    """The defaults, on a 2-D mixture: as near the data as other draws, and no sample thrown out.

    (With an unbounded step, as published but per example, the distance is 0.02 at these settings,
    and samples lie twice as far out as any datum.)
    """
    means = np.array([[1.5, 0.5], [-1.0, -1.0], [0.0, 2.0]])
    covariances = np.stack([np.diag([0.1, 0.02]), 0.05 * np.eye(2), 0.03 * np.eye(2)])
    process, n = PROCESSES[name], 1000
    denoiser = eqd.GaussianMixtureDenoiser(process, np.array([0.3, 0.3, 0.4]), means, covariances)
    data = np.asarray(
        jax.vmap(lambda k: denoiser.data_sample(key=k))(jax.random.split(jax.random.key(3), n))
    )
    x1 = process.prior_scale() * jax.random.normal(jax.random.key(1), (n, 2))
    sampler = eqd.PredictorCorrector(100)
    draw = quick_jit(jax.vmap(lambda x, k: sampler(denoiser, x, key=k)))
    x = np.asarray(draw(x1, jax.random.split(jax.random.key(2), n)))
    assert energy_distance(x, data) < 0.015
    assert np.abs(x).max() < 1.3 * np.abs(data).max()


def test_higher_order_predictor(x64):
    """ShARK with few steps on Gaussian data: a far better variance than Euler–Maruyama's."""
    denoiser, n = gaussian(SMOOTH), 4000
    x1 = jax.random.normal(jax.random.key(1), (n, 2))
    keys = jax.random.split(jax.random.key(0), n)
    off = []
    for predictor in (eqd.DiffraxPredictor(), eqd.EulerMaruyama()):
        sampler = eqd.PredictorCorrector(8, predictor=predictor, corrector=None)

        def run(x, k, s=sampler):
            return s.trajectory(denoiser, x, key=k).x[-2]

        x = quick_jit(jax.vmap(run))(x1, keys)
        alpha, sigma = SMOOTH.alpha(SMOOTH.t0), SMOOTH.sigma(SMOOTH.t0)
        # The prior is not quite p(x_t1), which moves the mean but hardly the spread.
        off.append(np.abs(x.std(0) / np.sqrt(alpha**2 * STD**2 + sigma**2) - 1).max())
    assert off[0] < 0.05 and off[0] < 0.4 * off[1]


@pytest.mark.parametrize("predictor", [eqd.EulerMaruyama(0.0), eqd.DiffraxPredictor()])
def test_predictors_in_time_take_schedules(predictor):
    """A step of a schedule is one unit of time: 1000 of them have the data's spread."""
    denoiser, n = gaussian(eqd.linear_schedule(1000)), 500
    sampler = eqd.PredictorCorrector(1000, predictor=predictor, corrector=None)
    draw = quick_jit(jax.vmap(lambda x, k: sampler(denoiser, x, key=k)))
    x1 = jax.random.normal(jax.random.key(1), (n, 2))
    x = np.asarray(draw(x1, jax.random.split(jax.random.key(0), n)))
    assert np.all(np.abs(x.mean(0) - MEAN) < 4 * STD / np.sqrt(n))
    np.testing.assert_allclose(x.std(0), STD, rtol=4 / np.sqrt(2 * n) + 0.01)


class Put(eqd.AbstractConstraint):
    """Replaces the state by a function of the levels, which shows what the constraint was given."""

    def __call__(self, step, x, x0, *, key):
        return jnp.broadcast_to(step.alpha_s + 2 * step.sigma_s + 10 * step.alpha_t, x.shape)


def test_a_constraint_has_the_level_after_the_step(x64):
    """A denoiser that returns its input shows where the predictor started: constrained."""
    denoiser = eqd.Denoiser(lambda c_noise, x, args, key: x, SMOOTH, eqd.PredictData())
    sampler = eqd.PredictorCorrector(5, constrain=Put())
    path = quick_jit(lambda: sampler.trajectory(denoiser, jnp.ones(2), key=jax.random.key(0)))()
    alpha, sigma = (np.asarray(jax.vmap(f)(path.t)) for f in (SMOOTH.alpha, SMOOTH.sigma))
    after = np.append(alpha[1:], 1.0) + 2 * np.append(sigma[1:], 0.0) + 10 * alpha
    np.testing.assert_allclose(path.x[:, 0], after, rtol=1e-12)
    np.testing.assert_allclose(path.x0[:, 0], 11 * alpha + 2 * sigma, rtol=1e-12)


@pytest.mark.parametrize(
    "predictor",
    [
        eqd.ReverseDiffusion(),
        eqd.AncestralPredictor(),
        eqd.EulerMaruyama(),
        eqd.DiffraxPredictor(),
        None,
    ],
)
def test_keeps_float32_whatever_the_default(predictor):
    sampler = eqd.PredictorCorrector(3, predictor=predictor)
    x1 = jax.ShapeDtypeStruct((2,), jnp.float32)
    out = eqx.filter_eval_shape(
        lambda x, key: sampler(gaussian(SMOOTH), x, key=key), x1, jax.random.key(0)
    )
    assert (out.shape, out.dtype) == ((2,), jnp.float32)


def sample_with(variance):
    sampler = eqd.PredictorCorrector(3, predictor=eqd.AncestralPredictor(variance))
    return sampler(gaussian(SMOOTH), jnp.asarray(X1, float), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: eqd.PredictorCorrector(predictor=None, corrector=None), "both None"),
        (lambda: sample_with(eqd.AnalyticVariance(np.full(10, 0.5))), "schedule"),
        (lambda: eqd.Langevin(0.0), "expected a positive finite number"),
        (lambda: eqd.AnnealedLangevin(-1.0), "expected a positive finite number"),
        (lambda: eqd.Langevin(0.1, 0), "corrector=None"),
        (lambda: eqd.AnnealedLangevin(0.1, -1), "corrector=None"),
        (lambda: eqd.ReverseDiffusion(1.5), "between 0 and 1"),
        (lambda: eqd.EulerMaruyama(-0.1), "between 0 and 1"),
        (lambda: eqd.DiffraxPredictor(diffrax.HalfSolver(diffrax.Euler())), "cannot be counted"),
    ],
)
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()
