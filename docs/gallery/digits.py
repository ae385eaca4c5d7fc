# %% [markdown]
# # Train digits from scratch in 40 lines
#
# From 1,497 images of 8 × 8 pixels to a class-conditional model of them, with nothing to download.
# The program up to the first picture has fewer than 40 lines.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import eqdiff as eqd


data = eqd.data.digits()
schedule = eqd.cosine_schedule(1000)
print(data.description)

# %% [markdown]
# ## The model and its loss
#
# The method is that of Improved DDPM: a U-Net predicts the noise and, in its second output channel,
# the variance of each reverse step. The loss looks at one image; `label` is its class.


# %%
def denoiser_of(net):
    return eqd.Denoiser(net, schedule, eqd.PredictNoise(), variance=eqd.LearnedRange())


def loss_fn(net, t, x0, label, *, key):
    p = eqd.predict(denoiser_of(net), t, x0, label, key=key)
    return eqd.l_hybrid(p, levels=data.levels), {}


net_key, train_key, sample_key, bits_key = jax.random.split(jax.random.key(0), 4)
net = eqd.nn.presets.iddpm_digits(num_classes=10, key=net_key)
optimiser, timesteps = optax.adam(1e-3), eqd.Uniform(schedule)
state = eqd.train.init(net, optimiser, timesteps=timesteps, ema=(0.995,), key=train_key)
step = eqd.train.make_step(loss_fn, optimiser)

# %% [markdown]
# ## Train, and watch
#
# The loop stops now and then to draw one digit of each class, always from the same noise.

# %%
num_steps, shown = 1500, (100, 300, 600)
images, labels = data.train.take(np.arange(len(data.train)))
real = data.normalise(images), labels
rows = {"data": [real[0][labels == digit][0] for digit in range(10)]}
batches = eqd.data.loader(data.train, 64, seed=0)
for i in range(1, num_steps + 1):
    state, metrics = step(state, next(batches))
    if i in (*shown, num_steps):
        denoiser = denoiser_of(state.ema_net())
        rows[f"{i} steps"] = eqd.generate(
            eqd.DDIM(50), eqd.Clip(denoiser), 10, data.shape, args=np.arange(10), key=sample_key
        )

figure, axes = plt.subplots(len(rows), 10, figsize=(9, len(rows)))
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, image in zip(row, pictures, strict=True):
        axis.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])

# %% [markdown]
# ## How good is it?
#
# A classifier that was trained on real digits counts how many of 300 new samples it takes for the
# class you asked for, and its features give the Fréchet distance to held-out images. The
# variational bound says how many bits per pixel the model needs for those. The number to beat there
# is a table of how often each pixel has each grey level, class by class.

# %%
asked = np.arange(300) % 10
samples = eqd.generate(
    eqd.DDIM(50), eqd.Clip(denoiser), 300, data.shape, args=asked, key=sample_key
)
held_out = data.held_out()
quality = eqd.metrics.sample_quality(samples, asked, real, held_out, levels=data.levels)
print(f"taken for their class: samples {quality.accuracy:.3f}, real {quality.accuracy_real:.3f}")
print(f"Fréchet distance: samples {quality.frechet:.1f}, real {quality.frechet_real:.1f}")
bound = eqd.metrics.bound_bits(denoiser, *data.held_out(100), levels=data.levels, key=bits_key)
table = eqd.metrics.table_bits(real, held_out, levels=data.levels)
print(f"bits per pixel: the model {bound}, a table {table}")

# %% [markdown]
# The samples pass for real. The likelihood loses to the table: most of $L_\text{hybrid}$ is
# $L_\text{simple}$, which is made for how samples look. If you need it, [train for the
# likelihood](likelihood.md).
#
# **Next:** [Training](../training.md) adds a log, checkpoints and resumption to this loop, and
# `python examples/train_cifar.py` is the same for CIFAR-10 and for your own images.
