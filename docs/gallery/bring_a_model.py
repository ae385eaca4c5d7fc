# %% [markdown]
# # Bring a diffusers or OpenAI model and sample it
#
# One call reads a model of another project: the network with its weights, the noise schedule, and
# the way its samples are drawn. You need neither PyTorch nor diffusers, and nothing in the file is
# executed.
#
# To read a published model, download it first:
#
# ```bash
# hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32  # diffusers
# wget https://openaipublic.blob.core.windows.net/diffusion/march-2021/cifar10_uncond_50M_500K.pt
# ```
#
# This page needs no network connection: it makes a small model of handwritten digits, writes it the
# way diffusers and OpenAI do, and reads it back. If you have a model, go straight to
# [Read a folder of diffusers](#read-a-folder-of-diffusers).

# %%
import json
import pathlib
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import eqdiff as eqd


data, schedule = eqd.data.digits(), eqd.linear_schedule(1000)
shape = eqd.nn.UNetShape(
    in_channels=1,
    out_channels=2,  # the noise, and the variance of each step
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_downsamples=(2,),
    num_classes=10,
)
net_key, train_key, sample_key = jax.random.split(jax.random.key(0), 3)
net = eqd.nn.UNet(shape, eqd.nn.styles.iddpm(), eqd.nn.embeddings.iddpm(), key=net_key)


def denoiser_of(net):
    return eqd.Denoiser(net, schedule, eqd.PredictNoise(), variance=eqd.LearnedRange())


def loss_fn(net, t, x0, label, *, key):
    return eqd.l_hybrid(eqd.predict(denoiser_of(net), t, x0, label, key=key)), {}


num_steps = 2000
optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
times = eqd.Uniform(schedule)
state = eqd.train.init(net, optimiser, timesteps=times, ema=(0.995,), key=train_key)
step = eqd.train.make_step(loss_fn, optimiser)
images, labels = data.train.take(np.arange(len(data.train)))
images, rng = data.normalise(images), np.random.default_rng(0)
for _ in range(num_steps):
    batch = rng.integers(len(images), size=64)
    state, metrics = step(state, (images[batch], labels[batch]))
trained = denoiser_of(state.ema_net())

home = pathlib.Path(tempfile.mkdtemp())
eqd.interop.save_diffusers(home / "ddpm-digits", eqd.ClipDataAlone(trained), sample_size=8)
openai_weights = eqd.interop.openai_state_dict(trained.net)

# %% [markdown]
# ## Read a folder of diffusers
#
# A folder of diffusers holds the weights, the network's configuration and the scheduler's:

# %%
for file in sorted((home / "ddpm-digits").iterdir()):
    print(f"{file.name:40} {file.stat().st_size:9,} bytes")
scheduler = json.loads((home / "ddpm-digits" / "scheduler_config.json").read_text())
print({name: value for name, value in scheduler.items() if name != "trained_betas"})

# %% [markdown]
# `load_diffusers_pipeline` returns a sampler and a denoiser. Together they draw what
# `DDPMPipeline` or `DDIMPipeline` would, whichever the folder names. A class-conditional network
# takes its labels as `args`.

# %%
sampler, denoiser = eqd.interop.load_diffusers_pipeline(home / "ddpm-digits", num_steps=1000)
classes = np.arange(10)
print(type(sampler).__name__, "of", type(denoiser).__name__)


def draw(sampler, denoiser, num=10):
    labels = np.resize(classes, num)
    return eqd.generate(sampler, denoiser, num, (1, 8, 8), args=labels, key=sample_key)


drawn = draw(sampler, denoiser, 60)
figure, axes = plt.subplots(6, 10, figsize=(7, 4.2))
for axis, image in zip(axes.flat, drawn, strict=True):
    axis.imshow(image[0], cmap="gray_r", vmin=-1, vmax=1)
    axis.axis("off")

# %% [markdown]
# ## Read a file of OpenAI
#
# `load_improved_diffusion` and `load_guided_diffusion` take the path of a `.pt` file or, as here, a
# state dict in memory. A published file is recognised by its name. For your own, give the flags of
# the training script; widths, levels, attention and classes are read off the weights.

# %%
flags = {"noise_schedule": "linear", "diffusion_steps": 1000, "channel_mult": "1,2"}
openai = eqd.interop.load_improved_diffusion(openai_weights, flags)
print(list(openai_weights)[:3], "…")
print(type(openai.net).__name__, "of", sum(w.size for w in openai_weights.values()), "weights")

noisy = schedule.perturb(500, images[0], jax.random.normal(sample_key, (1, 8, 8)))
for name, found in (("diffusers", denoiser.denoiser), ("OpenAI", openai)):
    difference = np.abs(found(500, noisy, labels[0]).noise - trained(500, noisy, labels[0]).noise)
    print(f"{name}: differs from the model that was written by at most {difference.max():.1e}")

# %% [markdown]
# ## Sample it in ten steps
#
# The model is an ordinary denoiser now, so everything in eqdiff takes it. You can swap the thousand
# steps for ten:

# %%
clipped = eqd.Clip(openai)
samplers = {
    "Ancestral, 1000": eqd.Ancestral(),
    "DDIM, 50": eqd.DDIM(50),
    "DPM-Solver++, 10": eqd.DPMSolverPP(10),
}
figure, axes = plt.subplots(len(samplers), 10, figsize=(8, 2.6))
for row, (name, sampler) in zip(axes, samplers.items(), strict=True):
    for axis, image in zip(row, draw(sampler, clipped), strict=True):
        axis.imshow(image[0], cmap="gray_r", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[], frame_on=False)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")

# %% [markdown]
# You can also measure how well it predicts images that it has not seen, in bits per dimension:

# %%
held_out = data.held_out(100)
print(eqd.metrics.bound_bits(openai, *held_out, levels=17, key=sample_key))

# %% [markdown]
# Save it once, and it loads without the original files from then on:

# %%
eqd.save_model(home / "digits.safetensors", openai)
again = eqd.load_model(home / "digits.safetensors")
print(np.array_equal(again(500, noisy, labels[0]).x0, openai(500, noisy, labels[0]).x0))

# %% [markdown]
# **Next:** [what your code's names are called here](../coming-from.md), for score_sde and EDM too;
# [fine-tune it](../fine-tuning.md) on your own data; [which files are
# read](../api/interop.md#coverage), and how closely each was checked.
