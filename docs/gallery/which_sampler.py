# %% [markdown]
# # Which sampler, by eye
#
# Samplers differ in how many calls of the network they need. Here the network is replaced by the
# exact denoiser of known data, so that what is wrong in a picture is the sampler's doing alone.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import eqdiff as eqd


process = eqd.VPSDE(t0=1e-3)
turns = jnp.linspace(0.5, 2.5, 64)
spiral = 0.7 * turns[:, None] * jnp.stack([jnp.cos(np.pi * turns), jnp.sin(np.pi * turns)], axis=1)
covariances = jnp.tile(0.04**2 * jnp.eye(2), (64, 1, 1))
denoiser = eqd.GaussianMixtureDenoiser(process, jnp.full(64, 1 / 64), spiral, covariances)

# %% [markdown]
# Each row is a sampler, each column a budget of network calls.

# %%
budgets = (6, 10, 20, 40)
samplers = {
    "DDIM": lambda n: eqd.DDIM(n),
    "DPM-Solver++(2M)": lambda n: eqd.DPMSolverPP(n),
    "UniPC(3)": lambda n: eqd.UniPC(n, order=3),
    "Ancestral": lambda n: eqd.DDIM(n, eta=1.0),
    "SDE-DPM-Solver++": lambda n: eqd.SDEDPMSolverPP(n),
}
key = jax.random.key(0)
figure, axes = plt.subplots(5, 4, figsize=(8.5, 10.6), sharex=True, sharey=True)
for row, (name, make) in zip(axes, samplers.items(), strict=True):
    row[0].set_ylabel(name)
    for axis, budget in zip(row, budgets, strict=True):
        samples = eqd.generate(make(budget), denoiser, 600, (2,), key=key)
        axis.scatter(*samples.T, s=1.5)
        axis.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal", xticks=[], yticks=[])
for axis, budget in zip(axes[0], budgets, strict=True):
    axis.set_title(f"{budget} calls")

# %% [markdown]
# The multistep solvers draw the spiral in ten calls; DDIM, which is Euler's method, in forty. Noise
# along the way costs calls, and buys robustness: it forgets what an imperfect network did wrong
# earlier, which an exact denoiser never does.
#
# Numbers, with fitted orders of convergence and trained networks: [Which
# sampler](../choosing-a-sampler.md).
