r"""What a train step reports, and how steps are summarised for a log.

A loss is dominated by a few times, so the official code logs not only its mean but also its mean
over each quarter of the schedule,

$$q(t) = \lfloor 4 t / T \rfloor \in \{0, 1, 2, 3\}, \tag{1}$$

and here $\lfloor 4 (t - t_0)/(t_1 - t_0) \rfloor$ for a process without steps. A small batch may
have no time in some quarter, so a step reports sums and counts and leaves the division to
[`eqdiff.train.summarise`][]: there is no NaN to average. Metrics stay on the device until they are
summarised; a training loop that summarises every hundred steps waits for the device that often and
no more.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._process import AbstractProcess, Schedule
from .._types import Scalar


_NORMS = ("grad_norm", "update_norm", "param_norm")


class StepMetrics(eqx.Module):
    """What one train step reports; all of it lives on the device.

    From [`eqdiff.train.make_steps`][] every array has a leading axis, that of the steps.

    **Fields:**

    - `loss`: the weighted mean that was differentiated.
    - `terms`: the weighted mean of each term that the loss function returned with the loss.
    - `grad_norm`: the global L2 norm of the gradient, before the optimiser clips it.
    - `update_norm`: that of what was added to the parameters; 0 if the step was spoilt.
    - `param_norm`: that of the new parameters.
    - `nonfinite`: whether `loss` or `grad_norm` is NaN or infinite.
    - `quartile_sums`: the *unweighted* loss and terms, summed over each quarter of the times (the
        official code weights them, so that with importance sampling they depend on the sampler).
    - `quartile_counts`: how many examples fell into each quarter.

    **Example:**

    ```python
    import optax
    optimiser, times = optax.adam(1e-3), eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(jnp.zeros(2), optimiser, timesteps=times, key=jax.random.key(0))
    step = eqd.train.make_step(lambda m, t, x0, args, key: (((m - x0) ** 2).sum(), {}), optimiser)
    state, metrics = step(state, (jnp.ones((8, 2)), None))  # an eqd.train.StepMetrics
    ```
    """

    loss: Scalar
    terms: dict[str, Scalar]
    grad_norm: Scalar
    update_norm: Scalar
    param_norm: Scalar
    nonfinite: Bool[Array, ""]
    quartile_sums: dict[str, Float[Array, "4"]]
    quartile_counts: Int[Array, "4"]


def quartiles(t: Shaped[Array, " n"], process: AbstractProcess) -> Int[Array, " n"]:
    """Equation (1); exact for integer times."""
    steps = isinstance(process, Schedule)
    low, high = (0, process.num_steps) if steps else (process.t0, process.t1)
    low, high = jnp.asarray(low, t.dtype), jnp.asarray(high, t.dtype)
    if jnp.issubdtype(t.dtype, jnp.integer):
        index = (4 * (t - low)) // (high - low)
    else:
        index = jnp.floor(4 * (t - low) / (high - low))
    # t = t1 itself belongs to the last quarter.
    return jnp.clip(index.astype(jnp.int32), 0, 3)


def quartile_metrics(
    t: Shaped[Array, " n"], values: dict[str, Float[Array, " n"]], process: AbstractProcess
) -> tuple[dict[str, Float[Array, "4"]], Int[Array, "4"]]:
    """The sums of each value over each quarter, and the number of examples in it."""
    # Masks and sums, which become one kernel; a scatter would be one for each value.
    inside = quartiles(t, process)[None] == jnp.arange(4, dtype=jnp.int32)[:, None]
    sums = {
        name: jnp.sum(jnp.where(inside, value[None], jnp.zeros((), value.dtype)), axis=1)
        for name, value in values.items()
    }
    return sums, jnp.sum(inside, axis=1, dtype=jnp.int32)


def summarise(metrics: Sequence[StepMetrics]) -> dict[str, int | float]:
    """Averages the metrics of some steps into plain numbers, waiting for the device.

    **Arguments:**

    - `metrics`: of the steps since the last summary, at least one. Those of several steps in one
        call ([`eqdiff.train.make_steps`][]) count as so many.

    **Returns:** `steps`, their number, by which means over several summaries are weighted; the
    means `loss`, each term by its name, `grad_norm`, `update_norm` and `param_norm`;
    `loss_q0` … `loss_q3` (and likewise for each term), the mean over all examples whose time fell
    into that quarter, absent if there was none; and `nonfinite`, the number of steps whose loss or
    gradient was.

    **Raises:** `ValueError` for no metrics.

    **Example:**

    ```python
    import optax
    optimiser, times = optax.adam(1e-3), eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(jnp.zeros(2), optimiser, timesteps=times, key=jax.random.key(0))
    step = eqd.train.make_step(lambda m, t, x0, args, key: (((m - x0) ** 2).sum(), {}), optimiser)
    state, metrics = step(state, (jnp.ones((8, 2)), None))
    print(eqd.train.summarise([metrics])["loss"])
    ```
    """
    if len(metrics) == 0:
        raise ValueError("summarise([]): expected the metrics of at least one step.")
    host = jax.device_get(list(metrics))
    steps = [m if np.ndim(m.loss) else jax.tree.map(lambda x: x[None], m) for m in host]
    whole = jax.tree.map(lambda *xs: np.concatenate(xs), *steps)
    summary = {
        "steps": len(whole.loss),
        "loss": float(np.mean(whole.loss)),
        **{name: float(np.mean(values)) for name, values in whole.terms.items()},
        **{name: float(np.mean(getattr(whole, name))) for name in _NORMS},
        "nonfinite": int(np.sum(whole.nonfinite)),
    }
    counts = whole.quartile_counts.sum(axis=0)
    for name, quarters in whole.quartile_sums.items():
        sums = quarters.sum(axis=0, dtype=np.float64)
        summary |= {f"{name}_q{i}": float(sums[i] / counts[i]) for i in range(4) if counts[i] > 0}
    return summary
