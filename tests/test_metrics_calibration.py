"""Ranks of samplers that are calibrated by construction, and of ones that are wrong in a known way:
θ ~ N(0, 1), x = θ + s n, whose posterior is N(x/(1 + s²), s²/(1 + s²))."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats

import eqdiff as eqd


S = 0.5
POSTERIOR_STD = S / (1 + S**2) ** 0.5


def simulate(rng, num):
    theta = rng.standard_normal((num, 1))
    return theta, theta + S * rng.standard_normal((num, 1))


def draw(rng, x, num_draws, width=1.0, bias=0.0):
    """Of a posterior that is too wide, or off, by factors of its standard deviation."""
    mean = x / (1 + S**2) + bias * POSTERIOR_STD
    return mean[:, None] + width * POSTERIOR_STD * rng.standard_normal((len(x), num_draws, 1))


def surprise(theta, x, width=1.0, bias=0.0):
    """−log q(θ|x)."""
    mean = x / (1 + S**2) + bias * POSTERIOR_STD
    return -scipy.stats.norm.logpdf(theta, mean, width * POSTERIOR_STD)


def checked(rng, num=500, num_draws=63, **wrong):
    """The calibration of θ and of its density."""
    theta, x = simulate(rng, num)
    draws = draw(rng, x, num_draws, **wrong)
    ranks = eqd.metrics.calibration_ranks(draws, theta)
    unlikely = eqd.metrics.calibration_ranks(
        surprise(draws, x[:, None], **wrong), surprise(theta, x, **wrong)
    )
    return eqd.metrics.calibration(np.concatenate([ranks, unlikely], axis=1), num_draws)


def test_of_an_exact_sampler_p_values_are_uniform_and_curves_stay_within_the_band():
    """As often below 5 % as 5 % says, over 400 repetitions."""
    rng = np.random.default_rng(0)
    found = [checked(rng, num=200) for _ in range(400)]
    p_values = np.array([c.p_value for c in found])
    for column in p_values.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-3
        assert abs(np.mean(column < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 400)
    strayed = np.array([np.abs(c.coverage - c.levels[:, None]).max(0) > c.band for c in found])
    assert np.all(strayed.mean(axis=0) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400))


@pytest.mark.parametrize(
    ("wrong", "sign"),
    [({"width": 0.7}, -1), ({"width": 1.5}, 1), ({"bias": 0.5}, -1)],
    ids=["over-confident", "under-confident", "biased"],
)
def test_a_wrong_one_fails(wrong, sign):
    """Both tests see it, and coverage is off by what the closed form says."""
    found = checked(np.random.default_rng(1), num=2000, **wrong)
    assert np.all(found.p_value < 1e-6)
    excess = found.coverage[:, 1] - found.levels
    assert np.max(sign * excess) > 2 * found.band
    # A region of highest density has |θ − mean| ≤ z width; θ* − mean is N(−bias, 1), in standard
    # deviations of the posterior.
    width, bias = wrong.get("width", 1.0), wrong.get("bias", 0.0)
    z = width * scipy.stats.norm.ppf(0.5 + found.levels / 2)
    truth = scipy.stats.norm.cdf(z + bias) - scipy.stats.norm.cdf(-z + bias)
    # 63 draws blur the level at which a region ends.
    assert np.abs(found.coverage[:, 1] - truth).max() < found.band + 0.01
    if bias:
        assert found.coverage[31, 0] < 0.5 - found.band or found.coverage[31, 0] > 0.5 + found.band


def test_the_p_value_is_pearsons():
    """Also with bins of unequal sizes; and a column is judged on its own."""
    ranks = np.random.default_rng(2).integers(0, 24, (300, 2))
    ranks[:, 1] = np.minimum(ranks[:, 1], 20)
    found = eqd.metrics.calibration(ranks, 23, num_bins=7)
    assert found.counts.shape == (7, 2) and np.all(found.counts.sum(axis=0) == 300)
    for i in range(2):
        expected = scipy.stats.chisquare(found.counts[:, i], found.expected)
        np.testing.assert_allclose(found.p_value[i], expected.pvalue, rtol=1e-4, atol=1e-7)
    alone = eqd.metrics.calibration(ranks[:, 0], 23, num_bins=7)
    np.testing.assert_allclose(alone.p_value, found.p_value[:1])
    np.testing.assert_allclose(found.expected.sum(), 300)
    np.testing.assert_allclose(found.coverage[-1], 1)


def test_ranks_are_counted_and_ties_broken_at_random():
    draws = np.array([[[0.0], [1.0], [2.0]], [[3.0], [4.0], [5.0]]])
    ranks = eqd.metrics.calibration_ranks(draws, np.array([[1.5], [9.0]]))
    np.testing.assert_array_equal(ranks, [[2], [3]])
    # Draws and truth from the same coin: uniform only if ties are broken fairly.
    coins = np.random.default_rng(3).integers(0, 2, (4000, 8))
    ranks = eqd.metrics.calibration_ranks(coins[:, :7], coins[:, 7])
    assert eqd.metrics.calibration(ranks, 7).p_value > 1e-3


class _Posterior(eqd.AbstractDenoiser):
    """The exact denoiser of N(x/(1 + s²), (width·std)²), with x as args."""

    width: jax.Array
    process: eqd.AbstractProcess = eqd.VPSDE(t0=1e-4)
    parameterisation: eqd.AbstractParameterisation = eqd.PredictNoise()
    variance: eqd.AbstractVariance = eqd.FixedSmall()

    def __call__(self, t, x, args=None, *, key=None):
        assert args is not None
        std = self.width.astype(x.dtype) * POSTERIOR_STD
        return eqd.GaussianDenoiser(self.process, args / (1 + S**2), std)(t, x)


def test_ranks_of_a_denoiser():
    """A Gaussian's posterior in two dimensions; too narrow a one fails in all columns."""
    theta, x = (
        a.reshape(300, 2).astype(np.float32) for a in simulate(np.random.default_rng(4), 600)
    )

    def p_value(width):
        ranks = eqd.metrics.posterior_ranks(
            eqd.DDIM(100, spacing=eqd.log_snr_times),
            # An array, so that both widths are one compiled program.
            _Posterior(jnp.asarray(width)),
            theta,
            x,
            num_draws=19,
            flow=eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3),
            key=jax.random.key(0),
            batch_size=300,
        )
        assert ranks.shape == (300, 3)
        return eqd.metrics.calibration(ranks, 19).p_value

    assert np.all(p_value(1.0) > 1e-3)
    assert np.all(p_value(0.6) < 1e-6)


def test_a_table_of_the_columns():
    ranks = np.repeat(np.arange(10), 10)[:, None]
    found = eqd.metrics.calibration(np.concatenate([ranks, ranks // 2], axis=1), 9)
    assert found.table(["θ", "density"]) == [
        ("ranks of", "p-value", "coverage at 50 %", "at 90 %"),
        ("θ", "1", "50 %", "90 %"),
        ("density", f"{found.p_value[1]:.2g}", "100 %", "100 %"),
    ]
    with pytest.raises(ValueError, match="1 names for 2 columns"):
        found.table(["θ"])


def test_what_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    ranks, judge = eqd.metrics.calibration_ranks, eqd.metrics.calibration
    with pytest.raises(ValueError, match=r"expected \(n, L, ...\) and \(n, ...\)"):
        ranks(np.zeros((3, 5, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="not all finite"):
        ranks(np.full((3, 5), np.nan), np.zeros(3))
    with pytest.raises(ValueError, match="ranks from 0 to 6 among 5 draws"):
        judge(np.array([0, 6]), 5)
    with pytest.raises(ValueError, match="whole numbers"):
        judge(np.array([0.0, 1.0]), 5)
    with pytest.raises(ValueError, match="at most 6"):
        judge(np.array([0, 1]), 5, num_bins=7)
