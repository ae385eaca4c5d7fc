r"""Linear maps with a transpose of their own, for derivatives in closed form.

Where a function has a derivative that can be written down, $J(r)\,\dot x$ with what it remembers of
the forward pass in $r$, and a better way to its transpose $J(r)^\top \bar y$ than transposing what
was written, JAX offers `jax.custom_vjp`, which has no forward mode and no second derivatives. Exact
traces and likelihoods need the first, guidance through a Jacobian the second. With `linear_map` a
`jax.custom_jvp` rule can have all three:

- forward mode evaluates $J$;
- reverse mode evaluates $J^\top$, and stores $r$ and nothing else;
- differentiating with respect to $\dot x$ or $\bar y$ is $J$ or $J^\top$ again, and with respect to
  $r$ it is the derivative of what was written.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


# fn(residuals, inputs) -> outputs, all of them sequences of arrays.
Map = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]

_linear = Primitive("linear_map")
_linear.multiple_results = True


def linear_map(
    forward: Map,
    transpose: Map,
    residuals: Sequence[Any],
    inputs: Sequence[Any],
    *,
    inputs_like: tuple[int, ...],
    outputs_like: tuple[int, ...],
) -> list[Array]:
    """`forward(residuals, inputs)`, whose transpose is `transpose(residuals, cotangents)`.

    **Arguments:**

    - `forward`, `transpose`: linear in their second argument. Both are differentiated and batched
        by JAX as any function.
    - `residuals`, `inputs`: arrays.
    - `inputs_like`, `outputs_like`: for each input and output, the number of the residual whose
        shape and dtype it has.

    **Returns:** the outputs.
    """
    like = dict(inputs_like=inputs_like, outputs_like=outputs_like)
    return _bind(
        *residuals, *inputs, forward=forward, transpose=transpose, number=len(residuals), **like
    )


def _bind(*arrays, forward: Map, number: int, **params):
    # Traced at once, for the reason that `_platform.py` gives.
    program = jax.make_jaxpr(lambda *a: list(forward(a[:number], a[number:])))(*arrays)
    return _linear.bind(*arrays, program=program, forward=forward, number=number, **params)


def _call(*arrays, program, **_):
    return jaxpr_as_fun(program)(*arrays)


def _shapes(*arrays, outputs_like, **_):
    return [arrays[i] for i in outputs_like]


def _batch(arrays, axes, *, forward, transpose, number, program, **like):
    del program
    (size,) = {a.shape[i] for a, i in zip(arrays, axes, strict=True) if i is not None}
    # What inputs and outputs are compared with has a batch axis as they do.
    described = {*like["inputs_like"], *like["outputs_like"]}
    moved, in_axes = [], []
    for n, (array, axis) in enumerate(zip(arrays, axes, strict=True)):
        if axis is not None:
            array = jnp.moveaxis(array, axis, 0)
        elif n >= number or n in described:
            array = jnp.broadcast_to(array, (size, *array.shape))
        moved.append(array)
        in_axes.append(None if axis is None and not (n >= number or n in described) else 0)
    along = (in_axes[:number], 0)

    def batched(fn):
        return lambda residuals, values: jax.vmap(fn, along)(list(residuals), list(values))

    out = _bind(
        *moved, forward=batched(forward), transpose=batched(transpose), number=number, **like
    )
    return out, [0] * len(out)


def _jvp(primals, tangents, *, forward, number, **params):
    residuals, inputs = primals[:number], primals[number:]
    d_residuals, d_inputs = tangents[:number], map(ad.instantiate_zeros, tangents[number:])

    def bind(inputs):
        return _linear.bind(*residuals, *inputs, forward=forward, number=number, **params)

    d_out = bind(d_inputs)
    if not all(isinstance(d, ad.Zero) for d in d_residuals):
        _, more = jax.jvp(
            lambda *residuals: list(forward(residuals, inputs)),
            residuals,
            tuple(map(ad.instantiate_zeros, d_residuals)),
        )
        d_out = [a + b for a, b in zip(d_out, more, strict=True)]
    return bind(inputs), d_out


def _transpose(cotangents, *arrays, forward, transpose, number, program, inputs_like, outputs_like):
    del program
    residuals = arrays[:number]
    out = _bind(
        *residuals,
        *map(ad.instantiate_zeros, cotangents),
        forward=transpose,
        transpose=forward,
        number=number,
        inputs_like=outputs_like,
        outputs_like=inputs_like,
    )
    return [*[None] * number, *out]


_linear.def_impl(_call)
_linear.def_abstract_eval(_shapes)
batching.primitive_batchers[_linear] = _batch
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
mlir.register_lowering(_linear, mlir.lower_fun(_call, multiple_results=True))
