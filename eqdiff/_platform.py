"""A function that has another implementation on NVIDIA GPUs.

`jax.lax.platform_dependent` traces both, which needs the libraries of both, and differentiates
both. Here the other one is traced when a program is compiled for an NVIDIA GPU and only then, and
derivatives are always those of the first.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


def on_nvidia(
    fused: Callable[..., Sequence[Array]],
    plain: Callable[..., Sequence[Array]],
    *arrays: Any,
    outputs_like: tuple[int, ...],
) -> list[Array]:
    """`plain(*arrays)`, computed as `fused(*arrays)` on an NVIDIA GPU.

    **Arguments:**

    - `fused`, `plain`: functions of arrays that return a sequence of arrays.
    - `arrays`: their arguments.
    - `outputs_like`: for each output, the number of the argument whose shape and dtype it has.
    """
    return _by_platform.bind(*arrays, fused=fused, plain=plain, outputs_like=outputs_like)


def _batch(arrays, axes, *, fused, plain, outputs_like):
    (size,) = {a.shape[i] for a, i in zip(arrays, axes, strict=True) if i is not None}
    moved = [
        jnp.broadcast_to(a, (size, *a.shape)) if i is None else jnp.moveaxis(a, i, 0)
        for a, i in zip(arrays, axes, strict=True)
    ]
    functions = dict(fused=jax.vmap(fused), plain=jax.vmap(plain))
    return _by_platform.bind(*moved, outputs_like=outputs_like, **functions), [0] * len(
        outputs_like
    )


def _jvp(primals, tangents, *, fused, plain, outputs_like):
    out = _by_platform.bind(*primals, fused=fused, plain=plain, outputs_like=outputs_like)
    _, d_out = jax.jvp(
        lambda *arrays: list(plain(*arrays)), primals, tuple(map(ad.instantiate_zeros, tangents))
    )
    return out, d_out


def _plain(*arrays, plain, **_):
    return list(plain(*map(jnp.asarray, arrays)))


def _fused(*arrays, fused, **_):
    return list(fused(*map(jnp.asarray, arrays)))


@_by_platform.def_impl
def _run(*arrays, **params):
    return jax.jit(lambda *arrays: _by_platform.bind(*arrays, **params))(*arrays)


_by_platform.def_abstract_eval(lambda *arrays, outputs_like, **_: [arrays[i] for i in outputs_like])
batching.primitive_batchers[_by_platform] = _batch
ad.primitive_jvps[_by_platform] = _jvp
mlir.register_lowering(_by_platform, mlir.lower_fun(_plain, multiple_results=True))
mlir.register_lowering(_by_platform, mlir.lower_fun(_fused, multiple_results=True), platform="cuda")
