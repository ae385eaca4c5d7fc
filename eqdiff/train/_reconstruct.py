r"""Averages of any width, reconstructed after training from those that were stored.

A power-law average of exponent $\gamma$ after $t$ steps weights the run by the profile

$$p_{t,\gamma}(\tau) = \frac{\gamma + 1}{t^{\gamma + 1}}\,\tau^\gamma
  \quad (0 \le \tau \le t), \tag{1}$$

so a combination $\sum_i x_i \bar\theta_i$ of stored averages weights it by $\sum_i x_i p_i$. Which
combination is nearest to the profile $p_*$ that is wanted is a problem of least squares, for which
the inner products of two profiles are enough: with $t_a \le t_b$

$$\langle p_a, p_b \rangle = \int p_a\,p_b\,d\tau = \frac{(\gamma_a + 1)(\gamma_b + 1)}
  {(\gamma_a + \gamma_b + 1)\,t_b} \left(\frac{t_a}{t_b}\right)^{\gamma_b}. \tag{2}$$

Two widths at each of a few dozen steps span every profile between them closely. Parameters never
enter: the weights are those of two networks as of two million.

Here the weights sum to 1 exactly, so that what never moved stays as it was, and large weights of
opposite sign, which would bring out the rounding of what is stored, cost a little:

$$\min_x\ T \Big\| \sum_i x_i p_i - p_* \Big\|^2 + \varepsilon^2 \|x\|^2
  \quad\text{with}\quad \sum_i x_i = 1, \qquad \varepsilon = 10^{-6}. \tag{3}$$

The official code solves without the second term and divides by the sum.

Source: Karras et al. (2024), *Analyzing and Improving the Training Dynamics of Diffusion Models*
(EDM2), section 3.2 and appendix C, algorithm 3 and equation (151).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from .._check import whole
from ._checkpoint import Checkpointer
from ._ema import AbstractEMA, PowerEMA


_NOISE = 1e-6  # Of a stored average, relative to how far parameters move: ε of equation (3).
_POOR = 0.1  # The relative error of a profile above which the caller is warned.


class StoredAverage(NamedTuple):
    """A stored power-law average of the parameters, read when it is needed.

    **Fields:**

    - `step`: after how many optimiser steps.
    - `rule`: which average, a [`eqdiff.train.PowerEMA`][].
    - `read`: a function without arguments that returns the network.

    **Example:**

    ```python
    average = eqd.train.StoredAverage(1000, eqd.train.PowerEMA(0.05), lambda: jnp.ones(3))
    ```
    """

    step: int
    rule: PowerEMA
    read: Callable[[], PyTree]


class Reconstruction(NamedTuple):
    """The combination of stored profiles that is nearest to the one wanted.

    **Fields:**

    - `weights`: one for each stored average; they sum to 1.
    - `error`: the L2 distance of the profiles, relative to the norm of the one that is wanted. The
        parameters' own error is a good deal smaller, as they change slowly.

    **Example:**

    ```python
    stored = [(1000, eqd.train.PowerEMA(0.05)), (1000, eqd.train.PowerEMA(0.10))]
    found = eqd.train.reconstruction(stored, eqd.train.PowerEMA(0.08))
    print(found.weights)  # of an eqd.train.Reconstruction
    ```
    """

    weights: Float[np.ndarray, " n"]
    error: float


def stored_averages(
    checkpointer: Checkpointer, net_like: PyTree, rules: Sequence[float | AbstractEMA]
) -> list[StoredAverage]:
    """The averages in the checkpoints of a run, for [`eqdiff.train.reconstruct`][].

    **Arguments:**

    - `checkpointer`: of the run. One that keeps more than the latest few, `keep_every=…`, serves
        more widths.
    - `net_like`: a network of the same architecture, or its shapes alone.
    - `rules`: those the run was started with, `init(…, ema=rules)`, in the same order: checkpoints
        do not hold them. Those that are not power laws are passed over.

    **Returns:** one for each checkpoint and power law. None has been read yet.

    **Raises:** `FileNotFoundError` if there is no checkpoint; `ValueError` without a power law.

    **Example:**

    ```python
    import optax
    rules, times = (eqd.train.PowerEMA(0.05),), eqd.Uniform(eqd.VPSDE())
    options = dict(timesteps=times, ema=rules, key=jax.random.key(0))
    with eqd.train.Checkpointer("checkpoints") as checkpointer:
        checkpointer.save(100, eqd.train.init(jnp.zeros(2), optax.sgd(0.1), **options))
    stored = eqd.train.stored_averages(checkpointer, jnp.zeros(2), rules)
    ```
    """
    if not any(isinstance(rule, PowerEMA) for rule in rules):
        raise ValueError(
            f"stored_averages(rules={tuple(rules)}): expected the rules that the run was started "
            "with, a power law among them, such as (PowerEMA(0.05), PowerEMA(0.10))."
        )
    # The averages before the first step are the untrained network, not a mean over the run.
    steps = [step for step in checkpointer.steps() if step > 0]
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {checkpointer.directory}.")

    def reader(step: int, index: int) -> Callable[[], PyTree]:
        return lambda: checkpointer.restore_net(net_like, step=step, average=index)

    return [
        StoredAverage(step, rule, reader(step, index))
        for step in steps
        for index, rule in enumerate(rules)
        if isinstance(rule, PowerEMA)
    ]


def _products(
    a: Sequence[tuple[int, PowerEMA]], b: Sequence[tuple[int, PowerEMA]], unit: int
) -> Float[np.ndarray, "n m"]:
    """Equation (2) for all pairs, with times in units of `unit` steps."""
    ta, ga = np.array([(t, rule.gamma) for t, rule in a]).T[:, :, None]
    tb, gb = np.array([(t, rule.gamma) for t, rule in b]).T[:, None, :]
    ratio, exponent = np.where(ta < tb, ta / tb, tb / ta), np.where(ta < tb, gb, ga)
    latest = np.maximum(ta, tb) / unit
    return (ga + 1) * (gb + 1) / ((ga + gb + 1) * latest) * ratio**exponent


def reconstruction(
    stored: Sequence[tuple[int, AbstractEMA]], target: AbstractEMA, *, step: int | None = None
) -> Reconstruction:
    """The weights of stored averages, without any parameters: equation (3) of the theory above.

    Plan with it which checkpoints a run should keep.

    **Arguments:**

    - `stored`: the step and the rule of each average.
    - `target`: the average that is wanted.
    - `step`: after how many steps; by default the latest that is stored. Later averages get the
        weight 0.

    **Returns:** a [`eqdiff.train.Reconstruction`][].

    **Raises:** `ValueError` for nothing stored, a rule that is not a power law, or a step after the
    latest one.

    **Example:**

    ```python
    rules = (eqd.train.PowerEMA(0.05), eqd.train.PowerEMA(0.10))
    stored = [(n, rule) for n in range(100, 1100, 100) for rule in rules]
    print(eqd.train.reconstruction(stored, eqd.train.PowerEMA(0.15)).error)
    ```
    """
    target = _power(target)
    known = [(whole("reconstruct", "step", s), _power(rule)) for s, rule in stored]
    steps = sorted({s for s, _ in known})
    step = whole("reconstruct", "step", max(steps, default=1) if step is None else step)
    used = [i for i, (s, _) in enumerate(known) if s <= step]
    if not used or step > steps[-1]:
        have = f"of steps {steps[0]} to {steps[-1]}" if steps else "none"
        raise ValueError(
            f"reconstruct(step={step}): the stored averages are {have}; expected a step among or "
            "between these, and averages until then."
        )
    profiles = [known[i] for i in used]
    gram = _products(profiles, profiles, step)
    cross, norm = _products(profiles, [(step, target)], step)[:, 0], _norm(target)
    found = _constrained(gram + _NOISE**2 * np.eye(len(used)), cross)
    weights = np.zeros(len(known))
    weights[used] = found
    squared = found @ gram @ found - 2 * found @ cross + norm**2
    return Reconstruction(weights, float(np.sqrt(max(squared, 0.0)) / norm))


def _power(rule: AbstractEMA) -> PowerEMA:
    if isinstance(rule, PowerEMA):
        return rule
    raise ValueError(
        f"reconstruct: {rule!r} is not a power law; expected PowerEMA(sigma_rel), such as "
        "PowerEMA(0.10)."
    )


def _norm(target: PowerEMA) -> float:
    return float(np.sqrt(_products([(1, target)], [(1, target)], 1)[0, 0]))


def _constrained(
    gram: Float[np.ndarray, "n n"], cross: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The minimum of xᵀGx - 2xᵀc where x sums to 1."""
    free, ones = np.linalg.solve(gram, np.stack([cross, np.ones_like(cross)], axis=1)).T
    return free + ones * (1 - free.sum()) / ones.sum()


def reconstruct(
    stored: Sequence[StoredAverage | tuple[int, AbstractEMA, PyTree]],
    target: AbstractEMA,
    *,
    step: int | None = None,
) -> PyTree:
    """The network with power-law averaged parameters of any width, made after training.

    ```python
    rules = (eqd.train.PowerEMA(0.05), eqd.train.PowerEMA(0.10))    # train.init(…, ema=rules)
    stored = eqd.train.stored_averages(checkpointer, net, rules)
    wide = eqd.train.reconstruct(stored, eqd.train.PowerEMA(0.15))
    ```

    **Arguments:**

    - `stored`: from [`eqdiff.train.stored_averages`][], or a list of `(step, rule, net)`. One
        network is read at a time.
    - `target`: the average that is wanted.
    - `step`: after how many steps; by default the latest that is stored. It need not be a stored
        one.

    **Returns:** a network as `state.ema_net()` returns one. A warning says so where the stored
    averages are too few or too different for a good approximation:
    [`eqdiff.train.reconstruction`][] says how good it is.

    **Raises:** `ValueError` for nothing stored, a rule that is not a power law, a step after the
    latest one, or networks of different architectures.

    **Example:**

    ```python
    rules = (eqd.train.PowerEMA(0.05), eqd.train.PowerEMA(0.10))
    stored = [(n, rule, jnp.full(3, float(n))) for n in (500, 1000) for rule in rules]
    net = eqd.train.reconstruct(stored, eqd.train.PowerEMA(0.08))
    ```
    """
    known = [(item[0], item[1]) for item in stored]
    weights, error = reconstruction(known, target, step=step)
    if error > _POOR:
        warnings.warn(
            f"the profile of {target} is only met to {error:.0%} by the {np.sum(weights != 0)} "
            "stored averages: keep more checkpoints (keep_every=…), or another width.",
            stacklevel=2,
        )
    total, last, like = None, None, None
    for weight, item in zip(weights, stored, strict=True):
        if weight == 0:
            continue
        net = item.read() if isinstance(item, StoredAverage) else item[2]
        arrays, like = eqx.partition(net, eqx.is_inexact_array)
        # In float64, as the weights may be large and of opposite sign.
        scaled = jax.tree.map(lambda x, w=weight: w * np.asarray(x, np.float64), arrays)
        _check_alike(total, scaled, item[0])
        total = scaled if total is None else jax.tree.map(np.add, total, scaled)
        last = arrays
    averaged = jax.tree.map(lambda x, y: jnp.asarray(x.astype(y.dtype)), total, last)
    return eqx.combine(averaged, like)


def _check_alike(total: PyTree, new: PyTree, step: int) -> None:
    if total is None:
        return
    shapes = [[np.shape(x) for x in jax.tree.leaves(tree)] for tree in (total, new)]
    if jax.tree.structure(total) != jax.tree.structure(new) or shapes[0] != shapes[1]:
        raise ValueError(
            f"reconstruct: the network of step {step} is of another architecture than those before."
        )
