r"""One noising, one network call, one record.

Every loss of the two papers is a function of the same few quantities,

$$x_t = \alpha_t x_0 + \sigma_t\varepsilon, \qquad
  (\hat x_0, \hat\varepsilon, v) = \text{denoiser}(t, x_t), \tag{1}$$

so they are computed once, here, and the losses are written like the papers' equations.
"""

import equinox as eqx
import jax

from ._check import check_example
from ._denoiser import AbstractDenoiser, Estimate
from ._parameterisation import AbstractParameterisation
from ._process import AbstractProcess, check_time
from ._types import Args, Example, Key, Time
from ._variance import AbstractVariance


class Prediction(eqx.Module):
    r"""A noised example and the denoiser's estimate of it.

    - `t`: the time; `x0`, `noise`, `x`: the data, the noise and
        $x_t = \alpha_t x_0 + \sigma_t\varepsilon$.
    - `estimate`: the denoiser's [`eqdiff.Estimate`][].
    - `process`, `parameterisation`, `variance`: the denoiser's.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    error = p.estimate.x0 - p.x0  # p is an eqd.Prediction
    ```
    """

    t: Time
    x0: Example
    noise: Example
    x: Example
    estimate: Estimate
    process: AbstractProcess
    parameterisation: AbstractParameterisation
    variance: AbstractVariance


def predict(
    denoiser: AbstractDenoiser,
    t: Time,
    x0: Example,
    args: Args = None,
    *,
    noise: Example | None = None,
    key: Key | None = None,
) -> Prediction:
    r"""Noises an example and denoises it, equation (1).

    **Arguments:**

    - `denoiser`: any denoiser.
    - `t`: the time to noise to.
    - `x0`: one example of data.
    - `args`: the network's conditioning, if any.
    - `noise`: ε, shaped like `x0`; drawn from `key` if not given.
    - `key`: for the noise and for dropout. If you pass `noise`, the key is for dropout alone, and
        optional.

    **Returns:** a [`eqdiff.Prediction`][], which every loss takes.

    **Raises:** `ValueError` for integer data, noise of another shape, neither noise nor key, a
    known time that is out of range, and a time that a training step drew from another process than
    the denoiser's. A traced whole time outside a schedule gives NaN.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.l_simple(p)
    ```
    """
    check_example("predict", x0)
    check_time(denoiser.process, t)
    if noise is None:
        if key is None:
            raise ValueError(
                "predict draws noise and needs a key: write key=..., or give the noise itself."
            )
        noise_key, key = jax.random.split(key)
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    if x0.shape != noise.shape:
        raise ValueError(
            f"predict: the noise has shape {noise.shape}, the data {x0.shape}; they must agree. "
            "For a batch write jax.vmap."
        )
    x = denoiser.process.perturb(t, x0, noise)
    estimate = denoiser(t, x, args, key=key)
    return Prediction(
        t, x0, noise, x, estimate, denoiser.process, denoiser.parameterisation, denoiser.variance
    )


def stop_mean(prediction: Prediction) -> Prediction:
    r"""Stops the gradient through $\hat x_0$ and $\hat\varepsilon$, not through the variance.

    In $L_\text{hybrid}$ the bound trains only the variance: the mean is learned by
    $L_\text{simple}$ (Nichol & Dhariwal 2021, section 3.1).

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    p = eqd.predict(denoiser, 20, jnp.ones(3), key=jax.random.key(0))
    bits = eqd.bound_term(eqd.stop_mean(p))  # no gradient through the mean
    ```
    """
    estimate = prediction.estimate
    frozen = Estimate(
        jax.lax.stop_gradient(estimate.x0),
        jax.lax.stop_gradient(estimate.noise),
        estimate.raw_variance,
    )
    return eqx.tree_at(lambda p: p.estimate, prediction, frozen)
