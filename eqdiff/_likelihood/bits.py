"""Bits per dimension of images, equation (2) of the folder's docstring."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._denoiser import AbstractDenoiser
from .._dequantise import AbstractDequantisation
from .._gaussian import nats_to_bits
from .._term import over_examples
from .._types import Args, Example, Key
from .density import log_likelihood, LogLikelihood


class BitsPerDim(eqx.Module):
    r"""Bits per dimension of an image, and the parts.

    - `value`: equation (2); an upper bound in expectation over the dequantisation.
    - `stderr`: the standard error over probes alone, in bits/dim. Average `value` over images, each with its own key,
        and the spread of the values covers images, probes and dequantisation together.
    - `likelihood`: the [`eqdiff.LogLikelihood`][] of the dequantised image.
    """

    value: Float[Array, "..."]
    stderr: Float[Array, "..."]
    likelihood: LogLikelihood


def bits_per_dim(
    denoiser: AbstractDenoiser,
    image: Example,
    args: Args = None,
    *,
    dequantise: AbstractDequantisation,
    key: Key,
    **options: Any,
) -> BitsPerDim:
    r"""Bits per dimension of an image, equation (2), from one draw of the dequantisation.

    **Arguments:**

    - `denoiser`: any denoiser on an SDE; with an [`eqdiff.Batched`][] one, `image` and `args` are a batch.
    - `image`: one image on the dequantisation's levels.
    - `args`: what conditions the network.
    - `dequantise`: [`eqdiff.UniformDequantisation`][] or [`eqdiff.VariationalDequantisation`][] for a network trained on
        dequantised data, [`eqdiff.GaussianDequantisation`][] for one trained on grid values.
    - `key`: for the dequantisation and the probes.
    - `options`: of [`eqdiff.log_likelihood`][]: `trace`, `solver`, `rtol` and so on.

    **Returns:** a [`eqdiff.BitsPerDim`][].

    **Raises:** as [`eqdiff.log_likelihood`][]; an error for an image of whole numbers, or with values on none of the levels
    that `dequantise` declares.
    """
    noise_key, probe_key = jax.random.split(key)
    single, each = over_examples(denoiser)
    keys = noise_key if single is denoiser else jax.random.split(noise_key, image.shape[0])
    y, offset = each(lambda i, a, k: dequantise(single, i, a, key=k))(image, args, keys)
    likelihood = log_likelihood(denoiser, y, args, key=probe_key, **options)
    size = image.size if single is denoiser else image.size // image.shape[0]
    bits = nats_to_bits(-(likelihood.log_prob + offset)) / size
    return BitsPerDim(bits, nats_to_bits(likelihood.stderr) / size, likelihood)
