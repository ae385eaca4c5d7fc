# %% [markdown]
# # Two moons, and how dense they are
#
# A score network for points in the plane: trained in a minute, sampled by a differential equation,
# and asked for its exact density.

# %%
import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import make_moons

import eqdiff as eqd


points = make_moons(100_000, noise=0.05, random_state=0)[0]
data = ((points - points.mean(0)) / points.std()).astype(np.float32)

# %% [markdown]
# ## Train
#
# A loss looks at one example. `predict` noises it to the time `t` and calls the network once;
# `score_matching` compares the estimate with what was there. `make_step` maps the loss over a
# batch, draws the times, and keeps a moving average of the weights.

# %%
process = eqd.VPSDE(t0=1e-3)


def loss_fn(net, t, x0, args, *, key):
    p = eqd.predict(eqd.Denoiser(net, process), t, x0, args, key=key)
    return eqd.score_matching(p), {}


num_steps = 5000
optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
net_key, train_key, sample_key = jax.random.split(jax.random.key(0), 3)
net = eqd.nn.MLP(2, 2, 128, 3, key=net_key)
state = eqd.train.init(
    net, optimiser, timesteps=eqd.LowDiscrepancy(process), ema=(0.999,), key=train_key
)
step = eqd.train.make_step(loss_fn, optimiser)
rng = np.random.default_rng(0)
losses = []
for _ in range(num_steps):
    state, metrics = step(state, (data[rng.integers(len(data), size=256)], None))
    losses.append(metrics.loss)
print(f"loss {np.mean(losses[:100]):.3f}, at last {np.mean(losses[-500:]):.3f}")

# %% [markdown]
# ## Sample
#
# One denoiser, three samplers: a chain of fifty steps, the probability-flow ODE with adaptive
# steps, and the reverse SDE.

# %%
denoiser = eqd.Denoiser(state.ema_net(), process)
samplers = {
    "DDIM, 50 steps": eqd.DDIM(50),
    "probability flow": eqd.ProbabilityFlow(diffrax.Tsit5()),
    "reverse SDE": eqd.ReverseSDE(diffrax.ShARK(), rtol=1e-2, atol=1e-2),
}
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9))
axes[0].scatter(*data[:1000].T, s=2, color="C1")
axes[0].set_title("data")
for axis, (name, sampler) in zip(axes[1:], samplers.items(), strict=True):
    samples = eqd.generate(sampler, denoiser, 1000, (2,), key=sample_key)
    axis.scatter(*samples.T, s=2)
    axis.set_title(name)
for axis in axes:
    axis.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])

# %% [markdown]
# ## Density
#
# The probability flow turns the data into Gaussian noise without losing any, so it gives the
# density of every point, here exactly: the trace of the Jacobian is computed, not estimated. A
# density integrates to one; this one does.

# %%
flow, trace = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3), eqd.ExactTrace()


def log_prob(x, key):
    return eqd.log_likelihood(denoiser, x, flow=flow, trace=trace).log_prob


grid = jnp.linspace(-2.5, 2.5, 100)
places = jnp.stack(jnp.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
density = np.exp(eqd.map_examples(log_prob, places, key=sample_key, batch_size=2500)).reshape(
    100, 100
)
print(f"The density integrates to {density.sum() * float(grid[1] - grid[0]) ** 2:.4f}.")

figure, axis = plt.subplots(figsize=(4, 3.6))
picture = axis.pcolormesh(grid, grid, density, shading="auto", rasterized=True)
figure.colorbar(picture, label="density")
axis.set(aspect="equal", xticks=[], yticks=[])

# %% [markdown]
# **Next:** [one network, three views](three_views.md) of it; or [which
# process](../which-process.md) to train on your own data.
