r"""The losses of a discrete schedule.

With the squared error in whatever the network predicts, and one term of the variational bound per
step,

$$L_\text{simple} = \tfrac1D\|F - \hat F\|^2, \tag{1}$$

$$L_t = \mathrm{KL}(q(x_{t-1}|x_t,x_0)\,\|\,p(x_{t-1}|x_t)) \quad (t > 0), \qquad
  L_0 = -\log p(x_0|x_1), \tag{2}$$

$$L_\text{vlb} = T \cdot \frac{L_t}{D \log 2}, \qquad
  L_\text{hybrid} = L_\text{simple} + \lambda\, L_\text{vlb}(\text{stop\_mean}), \quad \lambda
    = 10^{-3} \tag{3}$$

(Nichol & Dhariwal 2021, equations 4–7 and 16).

**Units.** $L_t/(D\log 2)$ is in bits per dimension; its *sum* over $t$ (plus the prior term) is the
bound that papers quote. At a uniformly drawn $t$, $T$ times one term is an unbiased estimate of
that sum, which is why (3) carries the factor $T$, the length of the schedule the denoiser is on.
Ports that drop it train the variance $T$ times too weakly.

**The official loss types**, for a prediction $p$ on a schedule of $T$ steps:

| `LossType` | here |
|---|---|
| `MSE`, fixed variance | `l_simple(p)` |
| `MSE`, learned variance | `l_simple(p) + bound_term(stop_mean(p))` |
| `RESCALED_MSE` | `l_simple(p) + 1e-3 * l_vlb(stop_mean(p))`, which is `l_hybrid(p)` |
| `KL` | `bound_term(p)` |
| `RESCALED_KL` | `l_vlb(p)` |
"""

from collections.abc import Callable

import jax.numpy as jnp

from .._check import check_levels, check_precision, is_traced, whole
from .._gaussian import discretised_gaussian_log_likelihood, gaussian_kl, nats_to_bits
from .._predict import Prediction, stop_mean
from .._process import require_schedule
from .._types import Example, Scalar


def l_simple(prediction: Prediction) -> Scalar:
    r"""$L_\text{simple} = \frac1D\|F - \hat F\|^2$: the mean squared error of what the network
    predicts.

    ε for [`eqdiff.PredictNoise`][], $x_0$ for [`eqdiff.PredictData`][] and so on, whatever the
    process. Equation 14 of Ho et al. (2020).

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.l_simple(p)
    ```
    """
    p = prediction
    target = p.parameterisation.target(p.process, p.t, p.x0, p.noise)
    # (x̂0, ε̂) satisfy x = αx̂0 + σε̂, so the target map applied to them gives the network's output
    # back.
    output = p.parameterisation.target(p.process, p.t, p.estimate.x0, p.estimate.noise)
    return jnp.mean((target - output) ** 2)


# log P of each element, given the data, the mean, log σ and the number of levels.
Decoder = Callable[..., Example]


def bound_term(
    prediction: Prediction,
    *,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
) -> Scalar:
    r"""One term of the variational bound, $L_t/(D\log2)$ of equation (2), in bits per dimension.

    **Arguments:**

    - `prediction`: made on a schedule, at a whole time.
    - `levels`: the number of grey levels of the data, which lie on $-1, -1 + 2/(L-1), \dots, 1$.
    - `decoder`: the log-likelihood of the step $t = 0$: the official one, with a tanh approximation
        of the normal distribution function, or
        [`eqdiff.discretised_gaussian_log_likelihood_exact`][].

    **Returns:** at $t > 0$ the KL divergence, at $t = 0$ the negative log-likelihood of the
    discretised decoder.

    **Raises:** `ValueError` if the process is not a schedule, for fewer than two levels, data in
    half precision, and known data with values on none of the levels.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    p = eqd.predict(denoiser, 20, jnp.ones(3), key=jax.random.key(0))
    bits = eqd.bound_term(p)
    ```
    """
    p = prediction
    schedule = require_schedule(p.process, "The variational bound")
    levels = whole("bound_term", "levels", levels, least=2, remedy=" 8-bit images have 256.")
    check_precision("bound_term", p.x0)
    if not is_traced(p.x0):
        # Traced data, as in training, pass: a check at run time would cost each step its share.
        check_levels(f"bound_term(levels={levels})", p.x0, levels)
    log_variance = p.variance.log_variance(schedule, p.t, p.estimate.raw_variance).astype(p.x.dtype)
    on_x0, _ = schedule.posterior_mean_coefficients(p.t)
    # Both means share their term in x, so only that in x0 is left of their difference.
    difference = on_x0.astype(p.x.dtype) * (p.x0 - p.estimate.x0)
    true_log_variance = schedule.lookup(schedule.posterior_log_variance, p.t).astype(p.x.dtype)
    kl = jnp.mean(gaussian_kl(difference, true_log_variance, log_variance))
    # At t = 0 the posterior mean is x̂0 itself.
    log_std = jnp.broadcast_to(0.5 * log_variance, p.x.shape)
    nll = -jnp.mean(decoder(p.x0, p.estimate.x0, log_std, levels=levels))
    return nats_to_bits(jnp.where(jnp.asarray(p.t) == 0, nll, kl))


def l_vlb(
    prediction: Prediction,
    *,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
) -> Scalar:
    r"""$L_\text{vlb} = T L_t / (D\log 2)$: an unbiased estimate, at a uniform $t$, of the bound in
    bits per dimension.

    $T$ is the length of the schedule the denoiser is on (of the respaced schedule, if it is
    respaced). The prior term, which has no gradient, is left out. Arguments and errors as for
    [`eqdiff.bound_term`][].

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    p = eqd.predict(denoiser, 20, jnp.ones(3), key=jax.random.key(0))
    bits = eqd.l_vlb(p)  # 50 times bound_term
    ```
    """
    schedule = require_schedule(prediction.process, "l_vlb")
    return schedule.num_steps * bound_term(prediction, levels=levels, decoder=decoder)


def l_hybrid(
    prediction: Prediction,
    *,
    vlb_weight: float = 1e-3,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
) -> Scalar:
    r"""$L_\text{hybrid} = L_\text{simple} + \lambda L_\text{vlb}$, the bound's mean frozen.

    The gradient of $L_\text{vlb}$ reaches the variance outputs alone.

    **Arguments:**

    - `prediction`: made on a schedule, with a learned variance.
    - `vlb_weight`: λ.
    - `levels`, `decoder`: as for [`eqdiff.bound_term`][].

    **Raises:** `ValueError` if the process is not a schedule, or the variance is not learned: the
    bound with the mean frozen would have no gradient.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 4, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(50), variance=eqd.LearnedRange())
    loss = eqd.l_hybrid(eqd.predict(denoiser, 20, jnp.ones(2), key=jax.random.key(0)))
    ```

    ??? cite "Reference"

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021, equation
        16.
    """
    require_schedule(prediction.process, "l_hybrid")
    if not prediction.variance.learned:
        raise ValueError(
            f"l_hybrid: the variance is {type(prediction.variance).__name__}(), which the bound "
            "cannot teach. Write eqdiff.Denoiser(..., variance=eqdiff.LearnedRange()), or "
            "l_simple for a fixed variance."
        )
    vlb = l_vlb(stop_mean(prediction), levels=levels, decoder=decoder)
    return l_simple(prediction) + vlb_weight * vlb
