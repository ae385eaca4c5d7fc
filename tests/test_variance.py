"""The variances of a reverse step: by their definitions, and the analytic one in its closed-form
cases.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

import eqdiff as eqd


SCHEDULE = eqd.cosine_schedule(30)
KEPT = np.array([0, 3, 4, 11, 20, 29])


def log_variances(variance, schedule, raw=None):
    run = jax.vmap(lambda t: variance.log_variance(schedule, t, raw))
    return np.asarray(quick_jit(run)(jnp.arange(schedule.num_steps)))


def tolerance():
    return 1e-10 if jnp.zeros(()).dtype == jnp.float64 else 1e-5


@pytest.mark.parametrize(
    "schedule", [SCHEDULE, eqd.respace(SCHEDULE, KEPT)], ids=["whole", "respaced"]
)
def test_definitions(schedule):
    """β and β̃ written out from ᾱ, step by step; the first entries are the official clip's."""
    alpha_bar = np.append(1.0, SCHEDULE.alpha_bar[schedule.timesteps])
    before, after = alpha_bar[:-1], alpha_bar[1:]
    beta = 1 - after / before
    posterior = beta * (1 - before) / (1 - after)
    posterior[0] = posterior[1]
    raw = jnp.linspace(-1.5, 1.5, 5)
    w = (np.linspace(-1.5, 1.5, 5) + 1) / 2
    small, large = np.log(posterior), np.log(np.append(posterior[0], beta[1:]))
    between = w * np.log(beta)[:, None] + (1 - w) * np.log(posterior)[:, None]
    for variance, truth in (
        (eqd.FixedSmall(), small),
        (eqd.FixedLarge(), large),
        (eqd.Learned(), np.broadcast_to(raw, between.shape)),
        (eqd.LearnedRange(), between),
    ):
        actual = log_variances(variance, schedule, raw)
        np.testing.assert_allclose(actual, truth, rtol=tolerance(), atol=tolerance())


def optimal(schedule, std):
    """β̃ + c₁² Var(x0|x_t) for N(0, s²) data, and at the first step Var(x0|x_t) itself."""
    sigma2 = 1 - schedule.alpha_bar
    uncertainty = std**2 * sigma2 / (schedule.alpha_bar * std**2 + sigma2)
    on_x0 = np.sqrt(schedule.alpha_bar_previous) * schedule.betas / sigma2
    return schedule.posterior_variance + on_x0**2 * uncertainty


def gaussian(schedule, std):
    """AnalyticVariance of N(0, s²) data: 1 − Γ = α²s²/(α²s² + σ²)."""
    signal = schedule.alpha_bar * std**2
    return eqd.AnalyticVariance(signal / (signal + 1 - schedule.alpha_bar))


@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kept", [np.arange(30), KEPT, np.array([7, 29]), np.array([12])])
def test_analytic_variance_of_gaussian_data(std, kept):
    """The table belongs to the whole schedule, the closed form to the respaced one."""
    schedule = eqd.respace(SCHEDULE, kept)
    actual = log_variances(gaussian(SCHEDULE, std), schedule)
    np.testing.assert_allclose(
        actual, np.log(optimal(schedule, std)), rtol=tolerance(), atol=tolerance()
    )


def test_exact_reverse_steps(getkey, x64):
    """For Gaussian data a coarse step is then exact: x_s has variance α_s²s² + σ_s²."""
    std, schedule = 0.4, eqd.respace(SCHEDULE, np.array([5, 20]))
    start, end = schedule.alpha_bar[1], schedule.alpha_bar[0]

    def marginal(alpha_bar):
        return alpha_bar * std**2 + 1 - alpha_bar

    # x̂0 = αs²/(α²s² + σ²) x, and the mean is linear in x̂0 and x.
    on_x0, on_x = (float(c) for c in schedule.posterior_mean_coefficients(1))
    slope = on_x0 * np.sqrt(start) * std**2 / marginal(start) + on_x
    variance = np.exp(log_variances(gaussian(SCHEDULE, std), schedule)[1])
    np.testing.assert_allclose(slope**2 * marginal(start) + variance, marginal(end), rtol=1e-10)


def test_limits():
    """No noise error is β̃, noise error 1 is β/(1 − β), white data are β."""
    zero, one, white = (
        np.exp(log_variances(eqd.AnalyticVariance(e), SCHEDULE))
        for e in (np.zeros(30), np.ones(30), SCHEDULE.alpha_bar)
    )
    np.testing.assert_allclose(zero[1:], SCHEDULE.posterior_variance[1:], rtol=tolerance())
    np.testing.assert_allclose(one, SCHEDULE.betas / (1 - SCHEDULE.betas), rtol=2 * tolerance())
    np.testing.assert_allclose(white, SCHEDULE.betas, rtol=tolerance())
    # The decoder's variance is never 0: 1 % of σ/α.
    least = 1e-4 * (1 - SCHEDULE.alpha_bar[0]) / SCHEDULE.alpha_bar[0]
    np.testing.assert_allclose(zero[0], least, rtol=1e-5)


def test_a_table_is_static_and_hashed_by_content():
    a, b = (gaussian(SCHEDULE, 0.5) for _ in range(2))
    assert jax.tree.leaves(a) == [] and eqx.tree_equal(a, b) and hash(a) == hash(b)
    assert not eqx.tree_equal(a, gaussian(SCHEDULE, 0.6))


def test_save_and_load(tmp_path):
    net = eqd.nn.MLP(2, 2, width=4, depth=1, key=jax.random.key(0))
    schedule = eqd.respace(SCHEDULE, KEPT)
    denoiser = eqd.Denoiser(net, schedule, variance=gaussian(SCHEDULE, 0.5))
    eqd.save_model(tmp_path / "model", denoiser)
    loaded = eqd.load_model(tmp_path / "model")
    assert eqx.tree_equal(loaded, denoiser, typematch=True)
    ours, theirs = loaded.variance.noise_error, denoiser.variance.noise_error
    assert ours.dtype == np.float64 and ours.tobytes() == theirs.tobytes()


def test_a_variance_of_ones_own():
    """What a step offers: its time in the original schedule, whether it is the first, its rates."""

    class Mine(eqd.AbstractVariance):
        learned = False

        def of_step(self, step, raw):
            return jnp.where(
                step.first, -1.0, step.timestep.astype(step.log_beta.dtype) + step.log_beta
            )

    schedule = eqd.respace(SCHEDULE, KEPT)
    truth = np.append(-1.0, KEPT[1:] + np.log(schedule.betas[1:]))
    np.testing.assert_allclose(log_variances(Mine(), schedule), truth, rtol=tolerance())


SHORT = eqd.AnalyticVariance(np.ones(20))
REFUSED = [
    *(
        (lambda table=table: eqd.AnalyticVariance(table), "one noise error per step, got shape")
        for table in (0.3, np.zeros(0), np.zeros((2, 2)))
    ),
    *(
        (lambda v=v: eqd.AnalyticVariance(np.array([0.5, v])), r"noise_error\[1\] = .* at least 0")
        for v in (np.nan, np.inf, -0.1)
    ),
    (
        lambda: SHORT.log_variance(eqd.respace(SCHEDULE, KEPT), 0, None),
        "knows 20 steps, but the schedule visits step 29",
    ),
]


@pytest.mark.parametrize(("call", "match"), REFUSED)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_oracles_and_networks_have_the_same_variance_by_default():
    process = eqd.cosine_schedule(9)
    network = eqd.Denoiser(lambda c_noise, x, args, *, key: x, process)
    mixture = eqd.GaussianMixtureDenoiser(process, *(np.ones((1,) * n) for n in (1, 2, 3)))
    for oracle in (eqd.GaussianDenoiser(process), mixture):
        assert oracle.variance == network.variance
        assert oracle.parameterisation == network.parameterisation
