"""What a denoiser and a prediction refuse, and that refusing costs a traced program nothing."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import eqdiff as eqd


CHAIN = eqd.cosine_schedule(50)


def zeros(c_noise, x, args=None, *, key=None):
    return jnp.zeros_like(x)


@pytest.mark.parametrize("x", [jnp.zeros(3, jnp.int32), np.zeros((1, 2, 2), np.uint8)])
def test_integer_images_are_refused_where_floats_belong(x, getkey, monkeypatch):
    # Users run without the type checker that would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    denoiser = eqd.Denoiser(zeros, CHAIN)
    for call in (
        lambda: denoiser(3, x),
        lambda: eqd.predict(denoiser, 3, x, key=getkey()),
        lambda: eqd.predict(denoiser, 3, x, jnp.zeros(x.shape)),
    ):
        with pytest.raises(ValueError, match=rf"{x.dtype} of shape.*127\.5 - 1"):
            call()


@pytest.mark.parametrize("process", [CHAIN, CHAIN, eqd.VPSDE(), eqd.VESDE()])
def test_a_time_out_of_range_is_refused_while_it_is_known(process, getkey):
    denoiser, x = eqd.Denoiser(zeros, process), jnp.zeros(3)
    chain = isinstance(process, eqd.Schedule)
    low, high = (0, 49) if chain else (process.t0, process.t1)
    for t in (low, high, jnp.asarray(high, jnp.float32)):
        assert np.all(np.isfinite(denoiser(t, x).noise))
    for t in (low - 1, high + 1, jnp.asarray(high + 1), float("nan")):
        with pytest.raises(ValueError, match="is outside"):
            denoiser(t, x)
        with pytest.raises(ValueError, match="is outside"):
            eqd.predict(denoiser, t, x, key=getkey())


def test_traced_times_are_not_looked_at():
    """The training step holds no check: its program is that of the arithmetic alone."""
    denoiser, x = eqd.Denoiser(zeros, CHAIN), jnp.zeros(3)
    text = str(jax.make_jaxpr(lambda t: denoiser(t, x).x0)(jnp.asarray(3)))
    assert "callback" not in text and "error" not in text


def test_noise_of_another_shape_is_refused():
    denoiser = eqd.Denoiser(zeros, CHAIN)
    with pytest.raises(ValueError, match=r"noise has shape \(4, 3\), the data \(3,\).*vmap"):
        eqd.predict(denoiser, 3, jnp.zeros(3), jnp.zeros((4, 3)))
