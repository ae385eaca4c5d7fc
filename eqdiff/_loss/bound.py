r"""The variational bound in continuous time, from one prediction.

$$-\tfrac1D\log P(x_0) \le
  \underbrace{\tfrac1D\mathrm{KL}(q(x_{t_1}|x_0)\,\|\,\mathcal N(0, s^2 I))}_\text{prior}
  + \underbrace{\mathbb E\left[-\tfrac1D\log P(x_0|x_{t_0})\right]}_\text{reconstruction}
  + \underbrace{\frac12\int_{t_0}^{t_1}\left(-\dot\lambda_t\right)
    \mathbb E\,\tfrac1D\|\varepsilon - \hat\varepsilon(x_t)\|^2\,\mathrm dt}_\text{diffusion}
  \tag{1}$$

(Kingma et al. 2021, equations 11, 12 and 17). At one uniform $t$ and one ε,

$$L = \text{prior} - \tfrac1D\log P(x_0|\alpha_{t_0}x_0 + \sigma_{t_0}\varepsilon)
  + \frac{t_1 - t_0}2\left(-\dot\lambda_t\right)\tfrac1D\|\varepsilon - \hat\varepsilon\|^2
  \tag{2}$$

is an unbiased estimate of it, and so is its gradient in whatever the process holds. The
reconstruction is the grid's own posterior given $x_{t_0}$, so that it costs no network call. The
value of (1) depends on a process through $\lambda_{t_0}$ and $\lambda_{t_1}$ alone.

**The schedule between its ends** changes only the variance of (2). Since the mean is the same for
all,

$$\nabla_\eta\operatorname{Var}[L] = \nabla_\eta\mathbb E[L^2]
  = \mathbb E[2 L\,\nabla_\eta L] \tag{3}$$

for the parameters η that shape it (Kingma et al. 2021, appendix I.2): in a backward pass the
cotangent of η is multiplied by $2L$, example by example, and nothing is computed twice.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._check import check_levels, check_precision, is_traced, whole
from .._gaussian import gaussian_kl, grid_gaussian_log_likelihood, nats_to_bits
from .._predict import Prediction
from .._process import AbstractProcess, LearnedVPSDE, Schedule
from .._types import Example, Scalar
from .discrete import Decoder


class ContinuousTerms(eqx.Module):
    r"""The terms of (2), in bits per dimension.

    - `prior`: exact; `reconstruction`, `diffusion`: estimates from one prediction.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    terms = eqd.continuous_terms(p)  # an eqd.ContinuousTerms
    ```
    """

    prior: Scalar
    reconstruction: Scalar
    diffusion: Scalar

    @property
    def bits(self) -> Scalar:
        """Their sum, which is [`eqdiff.l_continuous`][]."""
        return self.prior + self.reconstruction + self.diffusion


def continuous_terms(
    prediction: Prediction,
    *,
    levels: int | None = 256,
    decoder: Decoder = grid_gaussian_log_likelihood,
) -> ContinuousTerms:
    r"""The terms of [`eqdiff.l_continuous`][], for logging them separately. Arguments and errors
    are the same.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    prior = eqd.continuous_terms(p).prior
    ```
    """
    p, owner = prediction, "continuous_terms"
    process = p.process
    if levels is not None:
        levels = whole(owner, "levels", levels, least=2, remedy=" 8-bit images have 256.")
    if isinstance(process, Schedule):
        raise ValueError(
            f"{owner}: the process is a Schedule, whose times are whole, and (2) takes them "
            "uniform on an interval. Write eqdiff.l_vlb, or give the denoiser a process in "
            "continuous time."
        )
    check_precision(owner, p.x0)
    if levels is not None and not is_traced(p.x0):
        # Traced data, as in training, pass: a check at run time would cost each step its share.
        check_levels(f"{owner}(levels={levels})", p.x0, levels)
    dtype = p.x0.dtype
    rate = ((process.diffusion(p.t) / process.sigma(p.t)) ** 2).astype(dtype)
    length = jnp.asarray(process.t1 - process.t0).astype(dtype)
    diffusion = 0.5 * length * rate * jnp.mean((p.estimate.noise - p.noise) ** 2)
    log_std = -0.5 * process.log_snr(jnp.asarray(process.t0, dtype)).astype(dtype)
    if levels is None:
        reconstruction = log_std + 0.5 * math.log(2 * math.pi * math.e)
    else:
        # From the noise of the prediction: the terms need not be independent for their sum to be
        # unbiased.
        rescaled = p.x0 + jnp.exp(log_std) * p.noise
        log_std = jnp.broadcast_to(log_std, p.x0.shape)
        reconstruction = -jnp.mean(decoder(p.x0, rescaled, log_std, levels=levels))
    terms = prior_kl(process, p.x0), reconstruction, diffusion
    return ContinuousTerms(*map(nats_to_bits, terms))


def l_continuous(
    prediction: Prediction,
    *,
    levels: int | None = 256,
    decoder: Decoder = grid_gaussian_log_likelihood,
) -> Scalar:
    r"""An unbiased estimate of the variational bound in continuous time, equation (2), in bits per
    dimension.

    The counterpart of [`eqdiff.l_vlb`][] for processes in continuous time. Draw the times uniformly
    ([`eqdiff.LowDiscrepancy`][], [`eqdiff.Uniform`][]). Prior and reconstruction have a gradient
    only where the ends of the log-SNR are learned ([`eqdiff.LearnedVPSDE`][]) or the data are. The
    weights of other times, such as those of [`eqdiff.LikelihoodImportance`][], multiply these two
    as well, which leaves the mean as it is but not the variance: on an [`eqdiff.LearnedVPSDE`][],
    trained or not, uniform times are importance-sampled already.

    For the bound of a trained model, with a standard error, see [`eqdiff.continuous_bound`][].

    **Arguments:**

    - `prediction`: made on a process in continuous time.
    - `levels`: the number of grey levels of the data, which lie on $-1, -1 + 2/(L-1), \dots, 1$.
        `None` for continuous data such as dequantised images: then it is their *density* that is
        bounded, with $\mathcal N(x_{t_0}/\alpha_{t_0}, \sigma_{t_0}^2/\alpha_{t_0}^2)$ in the
        reconstruction, whose mean is known.
    - `decoder`: for levels, $\log P(x_0|x_{t_0})$ of each element, given $x_0$,
        $x_{t_0}/\alpha_{t_0}$, $\log(\sigma_{t_0}/\alpha_{t_0})$ and `levels`.

    **Raises:** `ValueError` for a schedule, fewer than two levels, data in half precision, and
    known data with values on none of the levels.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    bits = eqd.l_continuous(p)
    ```

    ??? cite "Reference"

        Kingma, Salimans, Poole & Ho, *Variational Diffusion Models*, NeurIPS 2021.
    """
    return continuous_terms(prediction, levels=levels, decoder=decoder).bits


def prior_kl(process: AbstractProcess, x0: Example) -> Scalar:
    """The KL divergence to the prior per dimension, in nats: both in units of its scale."""
    alpha, sigma = process.levels(process.t1, like=x0)
    scale = process.prior_scale().astype(x0.dtype)
    log_variance = 2 * (jnp.log(sigma) - jnp.log(scale))
    return jnp.mean(gaussian_kl(alpha * x0 / scale, log_variance, jnp.zeros_like(x0)))


# loss_fn(model, t, x0, args, *, key) -> (loss, terms) for one example, as `train` takes it.
LossFn = Callable[..., tuple[Scalar, Any]]


def variance_minimising(loss_fn: LossFn) -> LossFn:
    r"""The same loss, but the shape of a learned schedule follows the gradient of its square,
    equation (3).

    The loss, its terms and all other gradients are unchanged, including those of the ends of the
    log-SNR. Only `units` of each [`eqdiff.LearnedVPSDE`][] in the first argument are affected.
    Without this they get $\nabla L$, which is noise around zero.

    **Arguments:**

    - `loss_fn`: `(model, t, x0, args, *, key) -> (loss, terms)` for one example, an unbiased
        estimate of something that does not depend on the schedule between its ends:
        [`eqdiff.l_continuous`][].

    **Returns:** a function of the same arguments. It has no forward derivative.

    **Raises:** `ValueError`, when it is called, if the model holds no [`eqdiff.LearnedVPSDE`][].

    **Example:**

    ```python
    @eqd.variance_minimising
    def loss_fn(denoiser, t, x0, args, *, key):
        return eqd.l_continuous(eqd.predict(denoiser, t, x0, args, key=key)), {}
    ```

    ??? cite "Reference"

        Kingma, Salimans, Poole & Ho, *Variational Diffusion Models*, NeurIPS 2021, appendix I.2.
    """

    @functools.wraps(loss_fn)
    def minimising(model: PyTree, *args: Any, **kwargs: Any) -> tuple[Scalar, Any]:
        leaves, structure = jax.tree.flatten(model, is_leaf=_is_learned)
        # Of this example alone, and added to the units: under `vmap` what is the same for all
        # examples has one cotangent, summed over them before it could be multiplied.
        doubled = _zero_of(args, kwargs)
        if not any(map(_is_learned, leaves)):
            raise ValueError(
                f"variance_minimising: a {type(model).__name__} holds no eqdiff.LearnedVPSDE, "
                "whose shape could be learned. Train the denoiser in the network's place: "
                "eqdiff.train.init(eqdiff.Denoiser(net, eqdiff.LearnedVPSDE()), ...)."
            )
        for i, leaf in enumerate(leaves):
            if _is_learned(leaf):
                own = leaf.units + doubled.astype(leaf.units.dtype)
                units, doubled = _gate(own, doubled)
                leaves[i] = eqx.tree_at(lambda process: process.units, leaf, units)
        loss, terms = loss_fn(jax.tree.unflatten(structure, leaves), *args, **kwargs)
        return _remember(loss, doubled), terms

    return minimising


def _is_learned(leaf: Any) -> bool:
    return isinstance(leaf, LearnedVPSDE)


def _zero_of(*example: Any) -> Scalar:
    """A zero that each example has for itself under `vmap`, whatever of it is mapped over."""
    zero = jnp.zeros(())
    for leaf in jax.tree.leaves(eqx.filter(example, eqx.is_array)):
        numbers = leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            numbers = jax.random.key_data(leaf)
        if numbers.size:
            zero = zero + 0 * numbers.reshape(-1)[0].astype(zero.dtype)
    return jax.lax.stop_gradient(zero)


# Two identities. Backwards, the second one, at the loss, sends 2L as if it were the cotangent of
# its other argument; the first one, where the units enter, receives it and multiplies theirs by it.
@jax.custom_vjp
def _gate(units: Array, doubled: Scalar) -> tuple[Array, Scalar]:
    return units, doubled


def _gate_forwards(units, doubled):
    return (units, doubled), None


def _gate_backwards(_, cotangents):
    units, doubled = cotangents
    return units * doubled.astype(units.dtype), doubled


_gate.defvjp(_gate_forwards, _gate_backwards)


@jax.custom_vjp
def _remember(loss: Scalar, doubled: Scalar) -> Scalar:
    return loss


def _remember_forwards(loss, doubled):
    return loss, (loss, doubled)


def _remember_backwards(residuals, cotangent):
    loss, doubled = residuals
    return cotangent, 2 * loss.astype(doubled.dtype)


_remember.defvjp(_remember_forwards, _remember_backwards)
