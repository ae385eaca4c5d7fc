"""Times for a network that predicts a velocity, against their density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import X64
from toys import quick_jit

import eqdiff as eqd


def drawn(process, key):
    strategy = eqd.VelocityImportance(process)
    return quick_jit(lambda key: strategy.sample(strategy.init(), 4000, key=key))(key)


@pytest.mark.parametrize("process", [eqd.VPSDE(), eqd.VESDE(), eqd.LearnedVPSDE()])
def test_velocity_importance(process, getkey):
    """u = s(λ) is uniform for the softplus s, and the weight is p_uniform/p by autodiff; under VP
    it makes an error in v count alike at all times.
    """
    t, weights = drawn(process, getkey())
    assert float(t.min()) >= process.t0 and float(t.max()) <= process.t1

    def softplus(t):
        return jnp.logaddexp(process.log_snr(t), 0.0)

    start, end = (float(softplus(end)) for end in (process.t0, process.t1))
    values, slopes = quick_jit(jax.vmap(jax.value_and_grad(softplus)))(t)
    unit = (start - np.asarray(values, np.float64)) / (start - end)
    assert np.max(np.abs(np.sort(unit) - (np.arange(4000) + 0.5) / 4000)) < 1e-3
    density = -np.asarray(slopes, np.float64) / (start - end)
    expected = 1 / ((process.t1 - process.t0) * density)
    np.testing.assert_allclose(weights, expected, rtol=1e-8 if X64 else 2e-3)
    if isinstance(process, eqd.VPSDE):
        on_noise = jax.vmap(lambda t: eqd.LikelihoodWeighting().on_noise(process, t))(t)
        on_velocity = jax.vmap(lambda t: eqd.VelocityWeighting().on_noise(process, t))(t)
        ratio = np.asarray(weights * on_noise / on_velocity)
        np.testing.assert_allclose(ratio, (start - end) / (process.t1 - process.t0), rtol=1e-3)


def test_an_infinite_log_snr_is_refused():
    with pytest.raises(ValueError, match="VelocityImportance: .* fall from one finite value"):
        eqd.VelocityImportance(eqd.RectifiedFlow(t1=1.0))
