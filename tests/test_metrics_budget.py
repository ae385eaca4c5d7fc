"""The parts of an uncertainty against closed forms: Gaussian data, whose flow is linear."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd
from eqdiff.metrics._bits import Bound, from_first_level
from eqdiff.metrics._budget import _nested, _pseudo_variances


PROCESS = eqd.VPSDE()
MEAN = np.array([0.2, -0.1, 0.0, 0.3])
_ROOT = np.random.default_rng(0).normal(size=(4, 4)) * 0.35
COVARIANCE = _ROOT @ _ROOT.T + 0.1 * np.eye(4)
LEVELS = 5
WIDTH = 2 / LEVELS


def correlated(process=PROCESS):
    return eqd.GaussianMixtureDenoiser(process, np.ones(1), MEAN[None], COVARIANCE[None])


def linear_flow():
    """Of `correlated()`: eigenbasis Q, and along it the means and standard deviations at both
    ends."""
    values, basis = np.linalg.eigh(COVARIANCE)
    ends = []
    # Where the metrics begin images of so many levels.
    for t in (from_first_level(correlated(), LEVELS).process.t0, PROCESS.t1):
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        ends.append((alpha * basis.T @ MEAN, np.sqrt(alpha**2 * values + sigma**2)))
    return basis, *ends


def closed_form(images):
    """Of each image, in bits/dim and its square: the mean over dequantisations, and the variances
    over dequantisations and over probes.

    −log p(y) = ½ (y − c)ᵀ Λ (y − c) + const, with y = centre + e and e uniform in a bin, so that
    Var = gᵀg w²/12 + ¼ (Σᵢ Λᵢᵢ² w⁴/180 + 2 Σ_{i≠j} Λᵢⱼ² (w²/12)²), g = Λ(centre − c); a probe's
    εᵀMε, with M the integral of the flow's Jacobian, has the variance 2 Σ_{i≠j} Mᵢⱼ².
    """
    basis, (mean0, std0), (mean1, std1) = linear_flow()
    stretch = std1 / std0
    precision = basis @ np.diag(stretch**2) @ basis.T
    centre = basis @ (mean0 - mean1 / stretch)
    y = -1 + WIDTH * (np.rint((images + 1) / 2 * (LEVELS - 1)) + 0.5) - centre
    square = WIDTH**2 / 12
    constant = 2 * np.log(2 * np.pi) - np.log(stretch).sum() - 4 * np.log(WIDTH)
    mean = 0.5 * np.einsum("ni,ij,nj->n", y, precision, y) + constant
    mean += 0.5 * np.trace(precision) * square
    off = precision - np.diag(np.diag(precision))
    variance = square * np.sum((y @ precision) ** 2, axis=1) + 0.25 * (
        np.sum(np.diag(precision) ** 2) * WIDTH**4 / 180 + 2 * np.sum(off**2) * square**2
    )
    jacobian = basis @ np.diag(np.log(stretch)) @ basis.T
    probes = 2 * np.sum((jacobian - np.diag(np.diag(jacobian))) ** 2)
    unit = 4 * np.log(2)
    return mean / unit, variance / unit**2, probes / unit**2


def draw_images(num):
    data = np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, num)
    return np.clip(np.rint(data * 2) / 2, -1, 1)


def flow_at(tolerance):
    # As an array, so that all tolerances are one compiled program.
    tolerance = jnp.asarray(tolerance)
    return eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=tolerance, atol=tolerance)


def errors_at(images, tolerance, reference):
    with jax.enable_x64(True):
        return eqd.metrics.flow_errors(
            correlated(),
            images,
            levels=LEVELS,
            dequantise=eqd.UniformDequantisation(LEVELS),
            flow=flow_at(tolerance),
            reference=None if reference is None else flow_at(reference),
            key=jax.random.key(0),
            batch_size=600,
        )


@pytest.fixture(scope="module")
def budget():
    images = draw_images(600)
    return images, errors_at(images, 1e-5, None)


def test_each_part_is_its_closed_form(budget):
    """Given the images; 600 of them tell a variance to 4 to 22 %."""
    images, found = budget
    mean, among_draws, among_probes = closed_form(images)
    for part, truth in (
        (found.images, np.var(mean, ddof=1)),
        (found.dequantisation, among_draws.mean()),
        (found.probes, among_probes),
    ):
        assert abs(part.value - truth) < 4 * part.stderr < truth
    # Two dequantisations of two probes each: what is left once the images are given.
    noise = np.sqrt((among_draws.mean() / 2 + among_probes / 4) / len(images))
    assert abs(found.bits.value - mean.mean()) < 4 * noise + abs(found.solver.value)
    total = np.var(mean, ddof=1) + among_draws.mean() + among_probes
    np.testing.assert_allclose(found.stderr(10_000), np.sqrt(total / 1e4), rtol=0.1)
    assert found.dim == 4


def test_the_solvers_part_is_its_error(budget):
    """A tenth of the tolerance tells the error, here the difference to 1e-9, to a fifth."""
    images, estimate = budget
    truth = errors_at(images, 1e-5, 1e-9)
    np.testing.assert_allclose(estimate.solver.value, truth.solver.value, rtol=0.2)
    np.testing.assert_allclose(estimate.solver_rms, truth.solver_rms, rtol=0.2)
    assert abs(truth.solver.value) > 10 * truth.solver.stderr > 0


def test_solver_error_follows_the_true_error(x64):
    """From 1e-2 to 1e-6, against the closed form at six points: their RMS to a third, and each
    point's sign where the tolerance is small enough for there to be an order."""
    basis, _, (mean1, std1) = linear_flow()
    points = np.random.default_rng(2).multivariate_normal(MEAN, COVARIANCE, 6)
    alpha, sigma = float(PROCESS.alpha(PROCESS.t0)), float(PROCESS.sigma(PROCESS.t0))
    stretch = std1 / np.sqrt(alpha**2 * np.linalg.eigvalsh(COVARIANCE) + sigma**2)
    latents = mean1 + stretch * ((points - alpha * MEAN) @ basis)
    truth = -0.5 * np.sum(latents**2, axis=1) - 2 * np.log(2 * np.pi) + np.log(stretch).sum()

    @quick_jit
    def solve(points, tolerance):
        flow, reference = (
            eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=tol, atol=tol)
            for tol in (tolerance, tolerance / 10)
        )

        def one(x):
            return eqd.log_likelihood(
                correlated(), x, flow=flow, trace=eqd.ExactTrace(), reference=reference
            )

        found = jax.vmap(one)(points)
        return found.log_prob, found.solver_error

    sizes = []
    for tolerance in 10.0 ** -np.arange(2, 7):
        log_prob, estimate = solve(jnp.asarray(points), jnp.asarray(tolerance))
        error = np.asarray(log_prob) - truth
        sizes.append(np.sqrt(np.mean(error**2)))
        np.testing.assert_allclose(np.sqrt(np.mean(estimate**2)), sizes[-1], rtol=1 / 3)
        if tolerance < 1e-3:
            np.testing.assert_array_equal(np.sign(estimate), np.sign(error))
    assert sizes[0] > 300 * sizes[-1]


def test_components_are_unbiased_and_their_stderr_honest():
    """Nested draws whose variances differ from image to image, with no dequantisation noise at all:
    its estimate is negative half of the time, and nil on average."""
    rng = np.random.default_rng(0)
    repeats, n, num_draws, num_probes = 4000, 20, 3, 2
    found, stderr = np.empty((2, repeats, 3))
    for i in range(repeats):
        spread = rng.exponential(size=(n, 1, 1))  # of the probes; its second moment is 2
        noise = spread * rng.standard_normal((n, num_draws, num_probes))
        scores = 1.5 * rng.standard_normal((n, 1, 1)) + noise
        deviation = scores.std(axis=2, ddof=1) / np.sqrt(num_probes)
        images, draws, probes = _nested(scores.mean(axis=2), deviation, num_probes)
        parts = (images - draws / num_draws, draws - probes / num_probes, probes)
        means = [eqd.metrics.mean(part) for part in parts]
        found[i], stderr[i] = np.array([[m.value, m.stderr] for m in means]).T
    error = found.mean(axis=0) - [1.5**2, 0, 2]
    assert np.all(np.abs(error) < 4 * found.std(axis=0) / np.sqrt(repeats))
    assert 0.4 < np.mean(found[:, 1] < 0) < 0.7
    # The jackknife's variance errs on the safe side, by a little.
    ratio = np.sqrt(np.mean(stderr**2, axis=0)) / found.std(axis=0)
    assert np.all((0.93 < ratio) & (ratio < 1.15)), ratio


def test_pseudo_values_are_those_of_leaving_one_out():
    values = np.random.default_rng(3).standard_normal(7)
    left = [np.var(np.delete(values, i), ddof=1) for i in range(7)]
    expected = 7 * np.var(values, ddof=1) - 6 * np.array(left)
    np.testing.assert_allclose(_pseudo_variances(values), expected, rtol=1e-12)


def test_a_table_says_what_is_known():
    part = eqd.metrics.Mean
    found = eqd.metrics.ErrorBudget(
        part(3.5, 0.01, 100, 0),
        10,
        part(0.04, 0.006, 100, 0),
        dequantisation=part(-0.0002, 0.0008, 100, 0),
        probes=part(0.0025, 0.0002, 100, 0),
        solver=part(-0.002, 0.0004, 100, 0),
        solver_rms=0.003,
    )
    nats = 10 * np.log(2)
    assert found.table(10_000) == [
        ("source", "one image", "in nats", "mean of 10000"),
        ("images", "0.2", f"{0.2 * nats:.2g}", "0.002"),
        ("dequantisation", "< 0.04", "< 0.28", "< 0.0004"),
        ("probes", "0.05", f"{0.05 * nats:.2g}", "0.0005"),
        ("together", "0.21", "1.4", "0.0021"),
        ("solver (bias)", "0.003", "0.021", "-0.002 ± 0.0004"),
    ]
    assert str(found).splitlines()[0] == "3.500 ± 0.010 bits/dim"
    assert "mean of 100" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("process", [eqd.cosine_schedule(20), eqd.VPSDE()], ids=["chain", "vp"])
def test_of_the_bound(process):
    """Against hundreds of evaluations of each of eight images."""
    denoiser = eqd.GaussianDenoiser(process, 0.1, 0.4)
    rng = np.random.default_rng(4)
    images = np.clip(np.rint(rng.normal(0.1, 0.4, (8, 1, 2, 2)) * 2) / 2, -1, 1)
    many = np.repeat(images, 400, axis=0).astype(np.float32)
    options: Any = dict(levels=LEVELS, num_terms=16, batch_size=3200)
    found = eqd.metrics.bound_errors(denoiser, many, key=jax.random.key(0), **options)
    again = eqd.metrics.bound_bits(denoiser, many, key=jax.random.key(0), **options)
    assert found.bits == again

    # Compiled once with those above.
    fn = Bound(eqd.Clip(from_first_level(denoiser, LEVELS)), LEVELS, 16)
    scores = eqd.map_examples(fn, many, None, key=jax.random.key(1), batch_size=3200)[0]
    scores = scores.astype(np.float64).reshape(8, 400)
    draws = np.var(scores, axis=1, ddof=1).mean()
    truth = np.var(scores.mean(axis=1)) - draws / 400
    for part, value in ((found.draws, draws), (found.images, truth)):
        assert abs(part.value - value) < 4 * part.stderr < 0.6 * value
    assert found.probes is None and "times and noise" in str(found)


def test_what_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    denoiser, key = correlated(), jax.random.key(0)
    images = draw_images(3)
    with pytest.raises(ValueError, match="at least 3 images, got 2"):
        eqd.metrics.flow_errors(denoiser, images[:2], key=key)
    with pytest.raises(ValueError, match="at least 3 images, got 2"):
        eqd.metrics.bound_errors(denoiser, images[:2], key=key)
    with pytest.raises(ValueError, match="num_probes"):
        eqd.metrics.flow_errors(denoiser, images, num_probes=1, key=key)
    with pytest.raises(ValueError, match="fixed steps.*reference="):
        flow = eqd.ProbabilityFlow(num_steps=10)
        eqd.metrics.flow_errors(denoiser, images, levels=LEVELS, flow=flow, key=key)
