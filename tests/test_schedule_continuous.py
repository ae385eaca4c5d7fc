"""The bridge between the chain and continuous time, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from toys import quick_jit

import eqdiff as eqd


CHAINS = {
    "cosine": eqd.cosine_schedule(60),
    "linear": eqd.linear_schedule(60),
    "respaced": eqd.respace(eqd.cosine_schedule(400), eqd.section_timesteps(400, (25,))),
    "three": eqd.Schedule(np.array([0.1, 0.5, 0.2])),
}
chains = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)


def over(function, t):
    return np.asarray(quick_jit(jax.vmap(function))(jnp.asarray(t)), np.float64)


@chains
def test_equals_the_chain_at_whole_times(chain, x64):
    bridge = chain
    t = np.arange(chain.num_steps)
    for name in ("alpha", "sigma", "log_snr", "label"):
        truth = over(getattr(chain, name), t)
        actual = over(getattr(bridge, name), t.astype(float))
        np.testing.assert_allclose(actual, truth, rtol=1e-11, atol=1e-12, err_msg=name)


@chains
def test_is_variance_preserving_and_strictly_noisier_between(chain, x64):
    bridge = chain
    t = np.linspace(0, bridge.t1, 50 * chain.num_steps + 1)
    assert np.all(np.diff(over(bridge.log_snr, t)) < 0)
    assert np.all(np.diff(over(bridge.label, t)) > 0)
    np.testing.assert_allclose(
        over(bridge.alpha, t) ** 2 + over(bridge.sigma, t) ** 2, 1, rtol=1e-12
    )
    inside = t[1:-1]
    assert np.all(over(bridge.diffusion, inside) > 0)
    # No overshoot: between two steps the log-SNR stays between theirs.
    knots = over(chain.log_snr, np.arange(chain.num_steps))
    i = np.minimum(inside.astype(int), chain.num_steps - 2)
    value = over(bridge.log_snr, inside)
    assert np.all((value <= knots[i] + 1e-12) & (value >= knots[i + 1] - 1e-12))


def test_interpolation_has_a_continuous_slope_and_reproduces_parabolas(x64):
    """Steffen's slopes are the parabola's wherever no limiter acts."""
    t = np.arange(12.0)
    parabola = 5 - 0.9 * t - 0.05 * t**2
    bridge = eqd.ContinuousSchedule(parabola, t, t1=11.0)
    s = np.linspace(0, 11, 301)
    np.testing.assert_allclose(over(bridge.log_snr, s), 5 - 0.9 * s - 0.05 * s**2, rtol=1e-12)
    np.testing.assert_allclose(over(bridge.label, s), s, rtol=1e-12, atol=1e-12)
    # Where it does act, the slope is still continuous, and stays close to SciPy's other monotone cubic.
    rough = np.array([9.0, 8.9, 4.0, 3.9, 3.8, -1.0, -9.0, -9.1])
    bridge = eqd.ContinuousSchedule(rough, np.arange(8.0), t1=7.0)
    knots = np.arange(1.0, 7.0)
    slope = jax.grad(bridge.log_snr)
    np.testing.assert_allclose(over(slope, knots - 1e-9), over(slope, knots + 1e-9), atol=1e-6)
    s = np.linspace(0, 7, 201)
    pchip = scipy.interpolate.PchipInterpolator(np.arange(8), rough)(s)
    assert np.max(np.abs(over(bridge.log_snr, s) - pchip)) < 0.5


@chains
def test_time_inverts_log_snr_in_both_precisions(chain, x64):
    bridge = chain
    t = np.linspace(0, bridge.t1, 97)
    back = over(lambda t: bridge.time(bridge.log_snr(t)), t)
    np.testing.assert_allclose(back, t, atol=1e-9)
    there_and_back = quick_jit(jax.vmap(lambda value: bridge.log_snr(bridge.time(value))))
    low = there_and_back(jnp.asarray(over(bridge.log_snr, t), jnp.float32))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, over(bridge.log_snr, t), atol=2e-4, rtol=1e-6)
    # Outside the chain's range it saturates instead of diverging.
    ends = over(bridge.time, [1e3, -1e3])
    np.testing.assert_allclose(ends, [0, chain.num_steps - 1], atol=1e-9)


def test_second_derivative_of_time(x64):
    bridge = CHAINS["cosine"]
    at = bridge.log_snr(20.4)
    ahead, behind = over(jax.grad(bridge.time), at + np.array([1e-4, -1e-4]))
    second = over(jax.grad(jax.grad(bridge.time)), at[None])[0]
    np.testing.assert_allclose(second, (ahead - behind) / 2e-4, rtol=1e-5)


def test_a_clipped_last_step_is_left_out():
    assert eqd.cosine_schedule(60).t1 == 58
    assert eqd.linear_schedule(60).t1 == 59
    assert CHAINS["three"].t1 == 2
    # The respaced chain's last rate exceeds the clip, since it spans the clipped step.
    assert CHAINS["respaced"].betas[-1] >= 0.999 and CHAINS["respaced"].t1 == 23
    bridge = eqd.cosine_schedule(1000)
    assert float(bridge.alpha(bridge.t1)) > 1e-3
    with pytest.raises(ValueError, match="at least 3 steps, got 2"):
        eqd.Schedule(np.array([0.1, 0.2]))


def test_a_denoiser_is_the_same_call_in_both_views(getkey, x64):
    chain = CHAINS["cosine"]
    net = lambda c_noise, x, args, *, key: jnp.tanh(x + label / 1000)  # noqa: E731
    x = jax.random.normal(getkey(), (3,))
    for t in (0, 17, 58):
        one = eqd.Denoiser(net, chain)(t, x)
        other = eqd.Denoiser(net, chain)(t, x)
        np.testing.assert_allclose(one.x0, other.x0, rtol=1e-10)
        np.testing.assert_allclose(one.noise, other.noise, rtol=1e-12)


def _ddpm_error(num_steps):
    chain = eqd.discretise(eqd.VPSDE(), num_steps)
    ddpm = eqd.linear_schedule(num_steps)
    return chain, ddpm, float(np.max(np.abs(chain.alpha_bar - ddpm.alpha_bar)))


def test_discretised_vp_is_ddpm_up_to_one_over_n():
    """Equal rates in the limit (Song et al. 2021, appendix B); at finite T both differ by O(1/T)."""
    chain, ddpm, coarse = _ddpm_error(1000)
    assert coarse < 5e-3
    np.testing.assert_allclose(chain.betas[100:], ddpm.betas[100:], rtol=0.02)
    errors = [_ddpm_error(n)[2] for n in (500, 1000, 2000, 4000)]
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.1)


@pytest.mark.parametrize(
    "process",
    [eqd.VPSDE(), eqd.VPSDE(t1=0.8), eqd.cosine_schedule(60)],
    ids=["a", "b", "c"],
)
def test_discretised_levels_and_labels_are_the_process_own(process, x64):
    num_steps = 40
    chain = eqd.discretise(process, num_steps)
    times = process.t1 * np.arange(1, num_steps + 1) / num_steps
    t = np.arange(num_steps)
    np.testing.assert_allclose(over(chain.alpha, t), over(process.alpha, times), rtol=1e-10)
    np.testing.assert_allclose(over(chain.sigma, t), over(process.sigma, times), rtol=1e-10)
    np.testing.assert_allclose(chain.c_noises, over(process.label, times), rtol=1e-12)
    # And back: the bridge of the chain is the process again, its time being the index.
    bridge = chain
    np.testing.assert_allclose(over(bridge.label, t), over(process.label, times), rtol=1e-12)
    between = np.arange(1, num_steps - 2) + 0.5
    inside = process.t1 * (between + 1) / num_steps
    np.testing.assert_allclose(over(bridge.alpha, between), over(process.alpha, inside), atol=3e-3)


def test_discretise_does_not_depend_on_the_callers_precision():
    with jax.enable_x64(False):
        low = eqd.discretise(eqd.VPSDE(), 50)
    with jax.enable_x64(True):
        high = eqd.discretise(eqd.VPSDE(), 50)
    assert low == high and low.betas.dtype == np.float64


@pytest.mark.parametrize("process", [eqd.VESDE(), eqd.SubVPSDE()])
def test_only_variance_preserving_processes_are_discretised(process):
    with pytest.raises(ValueError, match="not variance-preserving") as error:
        eqd.discretise(process, 50)
    shown = float(str(error.value).split("is ")[2].split(" ")[0])
    assert abs(shown - 1) > 0.1, "the message shows where it fails"
