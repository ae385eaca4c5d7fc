"""Song et al.'s predictor–corrector loop as published, of the library's predictors and correctors.

It differs from `eqdiff.PredictorCorrector`, which is what to use, in four ways:

1. Euler–Maruyama takes N steps of 1/N, from times that are (1 − ε)/(N − 1) apart;
2. a Langevin step's size is set by norms that are means over the batch;
3. it ends in the predictor's last state (`denoise=False`) or its mean (`denoise=True`);
4. after every step, whichever kind, known data are put at the level that the state had *before* it;
   they start without noise; the mean of a constrained step has the mean of the known part and the
   *noisy* rest; and colourisation starts from the prior with its first channel set to 0.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqdiff as eqd
from eqdiff._sampler import base


class BatchLangevin(eqd.AbstractCorrector):
    """The published ε = 2(a r ‖z‖/‖s‖)², norms being means over the axis "batch" of `jax.vmap`."""

    snr: float
    steps: int = eqx.field(static=True)

    def size(self, step, noise, score):
        noise, score = jax.lax.pmean([jnp.sqrt(jnp.sum(v**2)) for v in (noise, score)], "batch")
        return 2 * (step.transition()[0] * self.snr * noise / score) ** 2


def step_between(process, t, s, last=False):
    """The steps from each t to its s, or from t into the data: built like the library's own."""
    t, s = np.asarray(t), np.asarray(s)
    # The last of several is always one into the data: here it is one too many.
    ends = (np.append(u, u.flat[-1]) for u in (t, s))
    steps = base.steps_between(process, *ends, like=jnp.zeros(()))
    steps = jax.tree.map(lambda leaf: leaf[:-1].reshape(t.shape), steps)
    last = jnp.broadcast_to(jnp.asarray(last), t.shape)
    fields = ("alpha_s", "sigma_s", "log_snr_s", "log_snr_fall")
    data = [
        jnp.where(last, end, getattr(steps, field))
        for field, end in zip(fields, (1.0, 0.0, jnp.inf, jnp.inf), strict=True)
    ]
    return eqx.tree_at(lambda step: [getattr(step, field) for field in fields], steps, data)


def steps_along(process, times, *, size=None):
    """Steps between decreasing times and then into the data, or of one size from each."""
    steps = base.steps_along(process, np.asarray(times), like=jnp.zeros(()))
    if size is None:
        return steps
    sizes = jnp.full_like(steps.size, size)
    return eqx.tree_at(lambda step: (step.s, step.size), steps, (steps.t - size, sizes))


def draw(denoiser, steps, x, *, key, predictor=None, corrector=None, known=None, levels=None):
    """One sample with its last noise (`denoise=False`), and without (`denoise=True`).

    `known` is an `Inpaint` or `Colourise`, noised to `levels`, or those of the steps' starts.
    """
    levels = (steps.alpha_t, steps.sigma_t) if levels is None else levels

    def put(level, x, key):
        (alpha, sigma), y = level, known.known(x)
        noise = jax.random.normal(key, y.shape, x.dtype)
        x = known.put(x, alpha * y + sigma * noise)
        return x, known.put(x, alpha * y)

    def body(state, inputs):
        x, mean = state
        step, level, key = inputs
        for kind, keys in zip((corrector, predictor), jax.random.split(key), strict=True):
            move, constrain = jax.random.split(keys)
            if kind is not None:
                x, mean, _ = kind(denoiser, step, x, None, key=move)
            if known is not None:
                x, mean = put(level, x, constrain)
        return (x, mean), None

    if known is not None:
        start = jnp.zeros_like(x) if isinstance(known, eqd.Colourise) else x
        x = known.put(start, known.known(x)) + (x.at[0].set(0) if start is not x else 0)
    return jax.lax.scan(body, (x, x), (steps, levels, jax.random.split(key, len(steps.t))))[0]
