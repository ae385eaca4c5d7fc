"""Bits per dimension of images, equation (2) of the folder's docstring."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._denoiser import AbstractDenoiser
from .._gaussian import nats_to_bits
from .._guidance import over_examples
from .._sampler import ProbabilityFlow
from .._trace import AbstractTrace, Hutchinson
from .._types import Args, Example, Key, Scalar
from .density import log_likelihood, LogLikelihood
from .dequantise import AbstractDequantisation


class BitsPerDim(eqx.Module):
    r"""Bits per dimension of an image, and the parts.

    - `bits`: equation (2); an upper bound in expectation over the dequantisation.
    - `stderr`: the standard error over probes alone, in bits/dim. Average `bits` over images, each
        with its own key, and the spread of the values covers images, probes and dequantisation
        together; [`eqdiff.metrics.flow_errors`][] separates them.
    - `solver_error`: the solver's error in bits/dim: `bits` less those of a `reference`, with the
        same draws; NaN (unknown) without one.
    - `likelihood`: the [`eqdiff.LogLikelihood`][] of the dequantised image.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    dequantise, key = eqd.UniformDequantisation(levels=17), jax.random.key(0)
    result = eqd.bits_per_dim(denoiser, jnp.ones(3), dequantise=dequantise, key=key)
    bits = result.bits  # result is an eqd.BitsPerDim
    ```
    """

    bits: Float[Array, "..."]
    stderr: Float[Array, "..."]
    solver_error: Float[Array, "..."]
    likelihood: LogLikelihood


def bits_per_dim(
    denoiser: AbstractDenoiser,
    image: Example,
    args: Args = None,
    *,
    dequantise: AbstractDequantisation,
    key: Key,
    flow: ProbabilityFlow = ProbabilityFlow(rtol=1e-5, atol=1e-5),
    trace: AbstractTrace = Hutchinson(),
    prior: Callable[[Example], Scalar] | None = None,
    reference: ProbabilityFlow | None = None,
) -> BitsPerDim:
    r"""Bits per dimension of an image, equation (2), from one draw of the dequantisation.

    **Arguments:**

    - `denoiser`: any denoiser; with an [`eqdiff.Batched`][] one, `image` and `args` are a batch.
    - `image`: one image on the dequantisation's levels.
    - `args`: the network's conditioning, if any.
    - `dequantise`: [`eqdiff.UniformDequantisation`][] or [`eqdiff.VariationalDequantisation`][] for
        a network trained on dequantised data, [`eqdiff.TruncatedNormalDequantisation`][] or
        [`eqdiff.GaussianDequantisation`][] for one trained on grid values.
    - `key`: for the dequantisation and the probes.
    - `flow`, `trace`, `prior`, `reference`: as for [`eqdiff.log_likelihood`][].

    **Returns:** a [`eqdiff.BitsPerDim`][].

    **Raises:** as [`eqdiff.log_likelihood`][]; an error for an integer image, or values on none of
    the levels of `dequantise`.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    dequantise, key = eqd.UniformDequantisation(levels=17), jax.random.key(0)
    result = eqd.bits_per_dim(denoiser, jnp.ones(3), dequantise=dequantise, key=key)
    ```
    """
    noise_key, probe_key = jax.random.split(key)
    single, each = over_examples(denoiser)
    keys = noise_key if single is denoiser else jax.random.split(noise_key, image.shape[0])
    y, offset = each(lambda i, a, k: dequantise(single, i, a, key=k))(image, args, keys)
    likelihood = log_likelihood(
        denoiser,
        y,
        args,
        flow=flow,
        trace=trace,
        key=probe_key,
        prior=prior,
        reference=reference,
    )
    size = image.size if single is denoiser else image.size // image.shape[0]
    bits = nats_to_bits(-(likelihood.log_prob + offset)) / size
    stderr, error = likelihood.stderr, -likelihood.solver_error
    return BitsPerDim(bits, nats_to_bits(stderr) / size, nats_to_bits(error) / size, likelihood)
