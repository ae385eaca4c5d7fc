"""A function that has another implementation on NVIDIA GPUs.

`jax.lax.platform_dependent` differentiates both. Here derivatives are always those of the first.

The other one is traced at once and kept as a program, in sight of JAX: some kernels, cuDNN's
attention among them, are compiled with the devices in hand, and JAX looks for those in a program
before it compiles it. In a function that is traced only then it would not find them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun, Primitive
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

    **Raises:** what tracing `fused` raises, on any platform.
    """
    program = jax.make_jaxpr(lambda *arrays: list(fused(*arrays)))(*arrays)
    return _by_platform.bind(*arrays, program=program, plain=plain, outputs_like=outputs_like)


def _batch(arrays, axes, *, program, plain, outputs_like):
    (size,) = {a.shape[i] for a, i in zip(arrays, axes, strict=True) if i is not None}
    moved = [
        jnp.broadcast_to(a, (size, *a.shape)) if i is None else jnp.moveaxis(a, i, 0)
        for a, i in zip(arrays, axes, strict=True)
    ]
    fused = jax.vmap(jaxpr_as_fun(program))
    return on_nvidia(fused, jax.vmap(plain), *moved, outputs_like=outputs_like), [0] * len(
        outputs_like
    )


def _jvp(primals, tangents, *, plain, **params):
    out = _by_platform.bind(*primals, plain=plain, **params)
    _, d_out = jax.jvp(
        lambda *arrays: list(plain(*arrays)), primals, tuple(map(ad.instantiate_zeros, tangents))
    )
    return out, d_out


def _plain(*arrays, plain, **_):
    return list(plain(*map(jnp.asarray, arrays)))


def _fused(*arrays, program, **_):
    return jaxpr_as_fun(program)(*arrays)


@_by_platform.def_impl
def _run(*arrays, **params):
    return jax.jit(lambda *arrays: _by_platform.bind(*arrays, **params))(*arrays)


_by_platform.def_abstract_eval(lambda *arrays, outputs_like, **_: [arrays[i] for i in outputs_like])
batching.primitive_batchers[_by_platform] = _batch
ad.primitive_jvps[_by_platform] = _jvp
mlir.register_lowering(_by_platform, mlir.lower_fun(_plain, multiple_results=True))
mlir.register_lowering(_by_platform, mlir.lower_fun(_fused, multiple_results=True), platform="cuda")
