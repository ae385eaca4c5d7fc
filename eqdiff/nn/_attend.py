r"""The kernels of attention: what computes $\mathrm{softmax}(q k^\top / \sqrt c)\,v$.

Written as two products and a softmax, the weights of every pair of tokens go through memory: on a
GPU that is half of what a U-Net moves outside its convolutions. cuDNN's fused kernel reads $q$,
$k$, $v$ and writes the result, and its backward pass does without the weights too. But a function
with a custom backward pass (`jax.custom_vjp`) lacks forward mode, which exact traces and
likelihoods need, and second derivatives, which guidance through a Jacobian needs.

So the derivative of attention is defined here as a linear map with a transpose (`_linear_map.py`):

$$A(q, k, v), \qquad J(q, k, v)\cdot(\dot q, \dot k, \dot v), \qquad
  J^\top(q, k, v)\cdot \bar o. \tag{1}$$

On an NVIDIA GPU $A$ and $J^\top$ are the fused kernel and $J$ the plain formula; elsewhere all are
plain. You need not choose: training takes the fused pair, a Jacobian-vector product of the same
network the plain formula.
"""

import abc
import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._linear_map import linear_map
from .._platform import on_nvidia
from ._norm import at_least_float32


Queries = Float[Array, "queries heads c"]
Keys = Float[Array, "keys heads c"]


def _plain(q: Array, k: Array, v: Array) -> Array:
    # With the heads in front both products are batched matrix products, which need no transpose.
    q, k, v = (rearrange(a, "... tokens heads c -> ... heads tokens c") for a in (q, k, v))
    wide = at_least_float32(q.dtype)
    logits = jnp.einsum("...qc,...kc->...qk", q, k, preferred_element_type=wide)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    out = jnp.einsum("...qk,...kc->...qc", weights, v)
    return rearrange(out, "... heads tokens c -> ... tokens heads c")


def _cudnn(q: Array, k: Array, v: Array) -> tuple[Array, Callable[..., Any]]:
    fused = ft.partial(jax.nn.dot_product_attention, implementation="cudnn")
    # One image is a batch of one; `jax.vmap` adds its axis to it.
    return jax.vjp(fused, q[None], k[None], v[None])


@jax.custom_jvp
def _fused(q: Array, k: Array, v: Array) -> Array:
    # As a backward pass would have it, with the sums of the softmax: then the forward pass that
    # `_cotangent` starts with is the same kernel call, which the compiler makes only once.
    (out,) = on_nvidia(
        lambda *qkv: [_cudnn(*qkv)[0][0]], lambda *qkv: [_plain(*qkv)], q, k, v, outputs_like=(0,)
    )
    return out


def _tangent(residuals, inputs):
    return [jax.jvp(_plain, tuple(residuals), tuple(inputs))[1]]


def _cotangent(residuals, inputs):
    def fused(q, k, v, d_out):
        return [d[0] for d in _cudnn(q, k, v)[1](d_out[None])]

    def plain(q, k, v, d_out):
        return jax.vjp(_plain, q, k, v)[1](d_out)

    return on_nvidia(fused, plain, *residuals, *inputs, outputs_like=(0, 1, 2))


@_fused.defjvp
def _fused_jvp(primals, tangents):
    like = dict(inputs_like=(0, 1, 2), outputs_like=(0,))
    (d_out,) = linear_map(_tangent, _cotangent, primals, tangents, **like)
    return _fused(*primals), d_out


def _has_kernel(q: Array, k: Array, v: Array) -> bool:
    # Whether there is a fused kernel for these here: not if cuDNN is missing, or refuses them.
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if not half or q.shape[-1] > 128 or q.shape[-1] % 8 != 0 or not q.shape == k.shape == v.shape:
        return False
    if jax.default_backend() == "gpu":
        capability = getattr(jax.local_devices()[0], "compute_capability", "0")
        if float(capability) < 8:
            return False
    try:
        jax.eval_shape(lambda *qkv: _cudnn(*qkv)[0], q, k, v)
    except (NotImplementedError, RuntimeError):
        return False
    return True


class AbstractAttention(abc.ABC):
    r"""Computes $\mathrm{softmax}(q k^\top / \sqrt c)\,v$ for every head."""

    @abc.abstractmethod
    def __call__(self, q: Queries, k: Keys, v: Keys) -> Queries:
        """**Arguments:**

        - `q`, `k`, `v`: of one example: `(tokens, heads, channels of a head)`.

        **Returns:** as `q`.
        """


@dataclasses.dataclass(frozen=True)
class PlainAttention(AbstractAttention):
    """Two matrix products and a softmax in float32 or better, everywhere.

    **Example:**

    ```python
    q = k = v = jnp.ones((16, 4, 8))  # tokens, heads, channels of a head
    out = eqd.nn.PlainAttention()(q, k, v)
    ```
    """

    def __call__(self, q: Queries, k: Keys, v: Keys) -> Queries:
        """See `AbstractAttention`."""
        return _plain(q, k, v)


@dataclasses.dataclass(frozen=True)
class FusedAttention(AbstractAttention):
    """cuDNN's fused kernel where it applies, and [`eqdiff.nn.PlainAttention`][] elsewhere.

    It applies on NVIDIA GPUs from Ampere on (compute capability 8.0), to self-attention in bfloat16
    or float16 with at most 128 channels per head, a multiple of 8. Forward mode and second
    derivatives use the plain formula, so that a network trained with the kernel has exact traces
    and likelihoods as it is.

    **Example:**

    ```python
    q = k = v = jnp.ones((16, 4, 8), jnp.bfloat16)  # tokens, heads, channels of a head
    out = eqd.nn.FusedAttention()(q, k, v)
    ```
    """

    def __call__(self, q: Queries, k: Keys, v: Keys) -> Queries:
        """See `AbstractAttention`."""
        return _fused(q, k, v) if _has_kernel(q, k, v) else _plain(q, k, v)
