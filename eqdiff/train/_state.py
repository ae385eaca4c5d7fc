r"""Everything a training run remembers between two steps, as one pytree.

A `TrainState` is saved, restored, sharded and donated as a whole; a run continued from it is the
run that was never interrupted. There is no hidden state: the randomness of step $n$ is
`fold_in(key, n)`, so keys need no bookkeeping either.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._timesteps import AbstractTimesteps
from .._types import Key
from ._ema import AbstractEMA, as_rule


class TrainState(eqx.Module):
    """What [`eqdiff.train.init`][] makes and a train step takes and returns.

    **Fields:**

    - `net`: the network; its floating-point arrays are the parameters.
    - `ema`: one tree of averaged parameters per rule. [`eqdiff.train.TrainState.ema_net`][] makes a
        network of it.
    - `opt_state`: the optimiser's state.
    - `timesteps`, `timestep_state`: the strategy for drawing times, and what it has learned.
    - `key`: the run's key; it never changes.
    - `step`: the number of optimiser steps taken, an int32 scalar.
    - `ema_rules`: the rules of `ema`, static.
    """

    net: PyTree
    ema: tuple[PyTree, ...]
    opt_state: PyTree[Any]
    timesteps: AbstractTimesteps
    timestep_state: PyTree[Any]
    key: Key
    step: Int[Array, ""]
    ema_rules: tuple[AbstractEMA, ...] = eqx.field(static=True)

    def ema_net(self, index: int = 0) -> PyTree:
        """The network with averaged parameters, ready to sample from.

        Everything else (integer arrays, static fields) is taken from `net`.

        **Arguments:**

        - `index`: which of the averages, in the order of `init(..., ema=...)`.

        **Raises:** `ValueError` if there is no such average.
        """
        if not -len(self.ema) <= index < len(self.ema):
            raise ValueError(
                f"ema_net({index}): this state has {len(self.ema)} averages. "
                "Ask for them when training starts: train.init(…, ema=(0.9999,))."
            )
        return eqx.combine(self.ema[index], self.net)


def parameters(net: PyTree) -> PyTree:
    """The trained part of a network: its floating-point arrays, everything else `None`."""
    return eqx.filter(net, eqx.is_inexact_array)


def _copy(tree: PyTree) -> PyTree:
    # A train step donates its state. A buffer shared with the caller's network would be deleted
    # under it; one shared by the averages, the optimiser's state or the parameters, donated twice.
    return jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, tree)


def _check_parameters(params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype in (jnp.bfloat16, jnp.float16):
            raise ValueError(
                f"the parameter net{jax.tree_util.keystr(path)} is {leaf.dtype}: its updates would "
                "be rounded away. Keep parameters in float32 and let the network compute in a "
                "narrower type."
            )


def _as_typed_key(key: Key) -> Key:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    implementation = str(jax.random.key_impl(key))
    if "rbg" in implementation:
        # Measured: under vmap every example would draw from the first key alone.
        raise ValueError(
            f"the training key is of the {implementation} generator, which repeats itself under "
            "jax.vmap: write key=jax.random.key(seed, impl='threefry2x32')."
        )
    return key


def init(
    net: PyTree,
    optimiser: optax.GradientTransformation,
    *,
    timesteps: AbstractTimesteps,
    ema: tuple[float | AbstractEMA, ...] = (0.9999,),
    key: Key,
) -> TrainState:
    """The state at step 0. The network is copied, so `net` stays usable when the state is donated.

    **Arguments:**

    - `net`: any Equinox module; its floating-point arrays are trained. Constants belong in static
        fields.
    - `optimiser`: an Optax transformation. Clipping, warm-up and decay are chained into it, for
        example `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.0,
        2e-4, 5000)))`.
    - `timesteps`: how times are drawn, and from which process: `eqd.Uniform(schedule)`, with the
        schedule of the loss.
    - `ema`: the moving averages of the parameters to keep; `()` for none. A number $r$
        stands for [`eqdiff.train.EMAWarmup`][]`(r)`. For a constant rate write
        [`eqdiff.train.EMA`][]`(r)`: after $n$ steps $r^n$ of that average is still the untrained
        network (37 % of `EMA(0.999)` after 1,000 steps), of a warmed-up one practically nothing.
    - `key`: decides every draw of the run.

    **Raises:** `ValueError` for parameters narrower than float32, and for an `rbg` key.
    """
    params = parameters(net)
    _check_parameters(params)
    rules = tuple(as_rule(rule) for rule in ema)
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimiser.init(params)
    return TrainState(
        net=_copy(net),
        ema=tuple(_copy(params) for _ in rules),
        opt_state=_copy(opt_state),
        timesteps=_copy(timesteps),
        timestep_state=_copy(timesteps.init()),
        key=_copy(_as_typed_key(key)),
        step=jnp.zeros((), jnp.int32),
        ema_rules=rules,
    )
