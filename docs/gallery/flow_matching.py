# %% [markdown]
# # Flow matching
#
# A flow that moves noise to data along straight lines needs few steps; along perfectly straight
# lines, one. You train three: on independent noise, on noise paired with the data, and on the
# pairs that the first flow makes itself.

# %%
import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import eqdiff as eqd


rng = np.random.default_rng(0)


def draw_data(num):  # the dark squares of a board of 4 × 4
    corner = rng.integers(4, size=(num, 2))
    corner[:, 1] = 2 * (corner[:, 1] // 2) + corner[:, 0] % 2
    return (corner - 2 + rng.uniform(size=(num, 2))).astype(np.float32)


def draw_noise(num):
    return rng.standard_normal((num, 2)).astype(np.float32)


# %% [markdown]
# ## Train
#
# Flow matching is not a separate library: the process is `RectifiedFlow`,
# $x_t = (1 - t)\,x_0 + t\,\varepsilon$, the network predicts the velocity $\varepsilon - x_0$, and
# the loss is the usual one. `predict(..., noise=...)` takes the noise that you chose for an
# example; here it arrives as the batch's second part.

# %%
process = eqd.RectifiedFlow(t1=1.0)


def denoiser_of(net):
    return eqd.Denoiser(net, process, eqd.PredictFlow())


def loss_fn(net, t, x0, noise, *, key):
    return eqd.l_simple(eqd.predict(denoiser_of(net), t, x0, noise=noise, key=key)), {}


def train(draw_pairs, num_steps=8000):
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    net = eqd.nn.MLP(2, 2, 128, 3, key=jax.random.key(0))
    timesteps = eqd.LowDiscrepancy(process)
    state = eqd.train.init(net, optimiser, timesteps=timesteps, ema=(0.999,), key=jax.random.key(1))
    step = eqd.train.make_step(loss_fn, optimiser)
    for _ in range(num_steps):
        state, _ = step(state, draw_pairs(256))
    return denoiser_of(state.ema_net())


# %% [markdown]
# Independent noise first. Then, within each batch, the permutation of the noise that brings every
# point of noise as near to its example as possible. Both leave the set of examples and the set of
# noise what they are, so both flows lead from one to the other.


# %%
def independent(num):
    return draw_data(num), draw_noise(num)


def paired(num):
    data, noise = draw_data(num), draw_noise(num)
    return data, noise[eqd.train.optimal_pairs(data, noise)]


flows = {"independent noise": train(independent), "optimal pairs": train(paired)}

# %% [markdown]
# The third flow learns from the first: solve its differential equation once for many points of
# noise, keep each with the sample it became, and train on these pairs. This is *reflow*.

# %%
exact = eqd.ProbabilityFlow(diffrax.Tsit5(), rtol=1e-4, atol=1e-4)
first, start = flows["independent noise"], draw_noise(50_000)
end = eqd.map_examples(
    lambda z, key: exact.decode(first, z), start, key=jax.random.key(2), batch_size=5000
)


def reflow(num):
    chosen = rng.integers(len(start), size=num)
    return end[chosen], start[chosen]


flows["reflow"] = train(reflow)

# %% [markdown]
# ## How straight are the paths?
#
# Every line starts in noise and ends at a dot.

# %%
times = jnp.linspace(1.0, process.t0, 40)
noise = draw_noise(150)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.9))
for axis, (name, denoiser) in zip(axes, flows.items(), strict=True):
    path_of = jax.vmap(lambda z, d=denoiser: exact.solve(d, z, saveat=times).ys)
    paths = np.asarray(path_of(noise))
    axis.plot(*paths.transpose(2, 1, 0), lw=0.7, color="C1", alpha=0.8)
    axis.scatter(*paths[:, -1].T, s=7, zorder=3)
    axis.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])

# %% [markdown]
# ## How many steps do they need?
#
# Euler's method with one, two and eight steps, and an adaptive solver. The number is how much of
# the samples lies on dark squares: 1 is right, and 0.5 is what a uniform cloud over the board gets.

# %%
solvers = {
    "1 step": eqd.ProbabilityFlow(diffrax.Euler(), num_steps=1),
    "2 steps": eqd.ProbabilityFlow(diffrax.Euler(), num_steps=2),
    "8 steps": eqd.ProbabilityFlow(diffrax.Euler(), num_steps=8),
    "adaptive": exact,
}


def on_dark(x):
    column, row = np.floor(x).astype(int).T
    return np.mean((np.abs(x).max(1) < 2) & ((column + row) % 2 == 0))


figure, axes = plt.subplots(3, 4, figsize=(9, 7.2), sharex=True, sharey=True)
for row, (name, denoiser) in zip(axes, flows.items(), strict=True):
    row[0].set_ylabel(name)
    for axis, (steps, solver) in zip(row, solvers.items(), strict=True):
        samples = eqd.generate(solver, denoiser, 4000, (2,), key=jax.random.key(3))
        axis.scatter(*samples.T, s=0.6)
        axis.set_title(f"{steps}: {on_dark(samples):.2f}")
        axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])

# %% [markdown]
# One step sends independent noise to the middle of the board: the mean velocity at $t = 1$ points
# to the mean of the data. With optimal pairs two steps are as good as eight without. Reflow is as
# good in one step as the flow it learned from is in many, and no better: it inherits its errors.
#
# **Next:** [flow matching](../flow-matching.md) between two data sets, bridges and guidance; the
# numbers behind [which sampler](../choosing-a-sampler.md).
