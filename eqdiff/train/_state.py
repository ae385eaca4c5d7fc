r"""The state of a training run between two steps, as one pytree.

A `TrainState` is saved, restored, sharded and donated as a whole; a run continued from it is the
run that was never interrupted. Parameters lie in it as their layout packs them (`_layout.py`), so
that it has a dozen arrays, not thousands. Nothing is hidden: the randomness of step $n$ is
`fold_in(key, n)`, so keys need no bookkeeping either.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._timesteps import AbstractTimesteps
from .._types import Key
from ._ema import AbstractEMA, as_rule
from ._layout import AbstractLayout, Flat, join, pack, Packing, Params, Slot, split
from ._place import to_process


class TrainState(eqx.Module):
    """The state of a run: made by [`eqdiff.train.init`][], taken and returned by a train step.

    **Fields:**

    - `params`: the parameters, as their layout packs them ([`eqdiff.train.Flat`][]): a dictionary
        of long vectors. `net` makes a network of them.
    - `constants`: the network's other arrays, by name; they are not trained.
    - `ema`: one dictionary of averaged parameters per rule, packed alike.
        [`eqdiff.train.TrainState.ema_net`][] makes a network of it.
    - `opt_state`: the optimiser's state.
    - `timesteps`, `timestep_state`: the strategy for drawing times, and what it has learned.
    - `key`: the run's key; it never changes.
    - `step`: the number of optimiser steps taken, an int32 scalar.
    - `ema_rules`: the rules of `ema`, static.
    - `packing`: the network without its arrays, and where they lie, static.

    **Example:**

    ```python
    import optax
    denoiser = eqd.Denoiser(eqd.nn.MLP(2, 2, key=jax.random.key(0)), eqd.VPSDE())
    times = eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(denoiser, optax.adam(1e-3), timesteps=times, key=jax.random.key(1))
    denoiser = state.ema_net()  # of an eqd.train.TrainState
    ```
    """

    params: Params
    constants: dict[str, Array]
    ema: tuple[Params, ...]
    opt_state: PyTree[Any]
    timesteps: AbstractTimesteps
    timestep_state: PyTree[Any]
    key: Key
    step: Int[Array, ""]
    ema_rules: tuple[AbstractEMA, ...] = eqx.field(static=True)
    packing: Packing = eqx.field(static=True)

    @property
    def net(self) -> PyTree:
        """The network. Its arrays are copies, which stay when the state is donated.

        In a job of several processes each gets a copy on one of its own devices. Where devices
        share the state, its parts are gathered first, so all processes must ask together.
        """
        return self._network(self.params)

    def ema_net(self, index: int = 0) -> PyTree:
        """The network with averaged parameters, ready to sample from.

        Everything else (integer arrays, static fields) is that of `net`. Its arrays are copies,
        and in a job of several processes on a device of this one, as those of `net`.

        **Arguments:**

        - `index`: which of the averages, in the order of `init(..., ema=...)`.

        **Raises:** `ValueError` for an index without an average.
        """
        if not -len(self.ema) <= index < len(self.ema):
            raise ValueError(
                f"ema_net({index}): this state has {len(self.ema)} averages. "
                "Ask for them when training starts: train.init(…, ema=(0.9999,))."
            )
        return self._network(self.ema[index])

    def _network(self, params: Params) -> PyTree:
        params, constants = to_process((params, self.constants))
        return self.packing.network(*_unpacked(self.packing.slots, params, constants))


@functools.partial(jax.jit, static_argnums=0)
def _unpacked(slots: tuple[Slot, ...], params: Params, constants: dict[str, Array]):
    # One program: cut one by one, each piece would be compiled for itself.
    return [jnp.copy(x) for x in split(slots, params)], {k: _copy(x) for k, x in constants.items()}


@functools.partial(jax.jit, static_argnums=0)
def _packed(slots: tuple[Slot, ...], pieces: list[Array]) -> Params:
    return join(slots, pieces)


def _copy(tree: PyTree) -> PyTree:
    # A train step donates its state. A buffer shared with the caller's network would be deleted
    # under it; one shared by the averages, the optimiser's state or the parameters, donated twice.
    return jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, tree)


def _check_parameters(slots: tuple[Slot, ...]) -> None:
    for slot in slots:
        if slot.dtype in (jnp.bfloat16, jnp.float16):
            raise ValueError(
                f"the parameter net.{slot.name} is {slot.dtype}: its updates would be rounded "
                "away. Keep parameters in float32 and let the network compute in a narrower type."
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
    layout: AbstractLayout = Flat(),
    key: Key,
) -> TrainState:
    """Makes the state at step 0.

    The network is copied, so `net` stays usable when the state is donated.

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
    - `layout`: how parameters lie in memory, which is what the optimiser sees:
        [`eqdiff.train.Flat`][] or [`eqdiff.train.Leaves`][].
    - `key`: decides every draw of the run.

    **Raises:** `ValueError` for parameters narrower than float32, and for an `rbg` key.

    **Example:**

    ```python
    import optax
    denoiser = eqd.Denoiser(eqd.nn.MLP(2, 2, key=jax.random.key(0)), eqd.VPSDE())
    times = eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(denoiser, optax.adam(1e-3), timesteps=times, key=jax.random.key(1))
    ```
    """
    packing, pieces, constants = pack(net, layout)
    _check_parameters(packing.slots)
    params = _copy(_packed(packing.slots, pieces))
    rules = tuple(as_rule(rule) for rule in ema)
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimiser.init(params)
    return TrainState(
        params=params,
        constants=_copy(constants),
        ema=tuple(_copy(params) for _ in rules),
        opt_state=_copy(opt_state),
        timesteps=_copy(timesteps),
        timestep_state=_copy(timesteps.init()),
        key=_copy(_as_typed_key(key)),
        step=jnp.zeros((), jnp.int32),
        ema_rules=rules,
        packing=packing,
    )
