# %% [markdown]
# # Train on eight devices
#
# A training step takes a mesh of devices and does the rest: it splits the batch, keeps the weights
# on each device, and adds up the gradients. The numbers do not depend on how many devices there
# are. JAX can pretend that a CPU is eight devices, which is enough to try it.

# %%
import os


os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before JAX is imported

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import eqdiff as eqd


print(f"{len(jax.devices())} devices")

# %%
process = eqd.VPSDE()
rng = np.random.default_rng(0)
data = rng.standard_normal((4096, 2)).astype(np.float32) * [1.0, 0.3]


def denoiser_of(net):
    return eqd.Denoiser(net, process, eqd.PredictVelocity())


def loss_fn(net, t, x0, args, *, key):
    return eqd.score_matching(eqd.predict(denoiser_of(net), t, x0, args, key=key)), {}


def train(mesh, num_steps=1500):
    net_key, train_key = jax.random.split(jax.random.key(0))
    net = eqd.nn.MLP(2, 2, 64, 2, key=net_key)
    optimiser = optax.adam(1e-3)
    timesteps = eqd.LowDiscrepancy(process)
    state = eqd.train.init(net, optimiser, timesteps=timesteps, ema=(0.999,), key=train_key)
    step = eqd.train.make_step(loss_fn, optimiser, mesh=mesh)
    batches, losses = np.random.default_rng(1), []
    for _ in range(num_steps):
        batch = data[batches.integers(len(data), size=512)].astype(np.float32)
        state, metrics = step(state, (batch, None))
        losses.append(float(metrics.loss))
    return state, losses


# %%
mesh = eqd.train.data_mesh()
state, on_eight = train(mesh)
_, on_one = train(None)
print(f"largest difference of the losses {np.abs(np.subtract(on_eight, on_one)).max():.1e}")

figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(on_one, lw=3, alpha=0.4, label="one device")
axis.plot(on_eight, lw=1, label="eight devices")
axis.set(xlabel="step", ylabel="loss", xscale="log")
axis.legend()

# %% [markdown]
# Sampling takes the same mesh:

# %%
denoiser = denoiser_of(state.ema_net())
samples = eqd.generate(eqd.DDIM(50), denoiser, 4096, (2,), key=jax.random.key(1), mesh=mesh)
print(f"standard deviations {samples.std(0).round(3)}, those of the data {data.std(0).round(3)}")

# %% [markdown]
# **Next:** several hosts, memory and checkpoints: [Many devices, many hosts](../devices.md).
