# %% [markdown]
# # Likelihood training that beats a table
#
# How many bits does it take to code an image that the model has never seen? Count how often each
# pixel of a digit has each grey level, and code with that table: no network, no training. A
# diffusion model trained for good samples needs *more* bits than the table. This page shows where
# they go, and trains models that need fewer.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import eqdiff as eqd


data = eqd.data.digits()
images, labels = data.train.take(np.arange(len(data.train)))
images = data.normalise(images)
held_out, held_out_labels = data.held_out()
table = eqd.metrics.table_bits((images, labels), (held_out, held_out_labels), levels=17)
print(f"a table: {table} bits/dim")

# %% [markdown]
# ## Four ways to train one network
#
# All four train the same network, with the same images in the same order, to predict the noise. The
# first two are schedules of a thousand steps with the usual loss, which weighs the error in the
# noise equally at all steps.
#
# The third begins where the grey levels begin. The digits have 17 of them, and noise far below
# the distance between two has nothing to teach about digits, although the bound charges for every
# error that a network makes there. From 0.4 of that distance on, its weights are those of the
# bound, and its times are drawn in proportion to them, which makes them uniform in the log-SNR.
#
# The fourth learns where to begin and end, and how to go in between: process and network are
# trained together on the bound itself. The denoiser takes the network's place, since it holds both.

# %%
start = 0.4 * 2 / (17 - 1)  # the noise level at which to begin, in units of the data
vp = eqd.VPSDE()
vp = eqd.VPSDE(t0=float(vp.time(jnp.asarray(-2 * np.log(start)))))
learned = eqd.LearnedVPSDE(jnp.asarray(6.0), jnp.asarray(-5.0))


def usual(p):
    return eqd.l_simple(p)


def weighted(p):
    return eqd.score_matching(p, eqd.LikelihoodWeighting())


def bound(p):
    return eqd.l_continuous(p, levels=17)


recipes = {
    "cosine schedule": (eqd.cosine_schedule(1000), eqd.Uniform, usual),
    "linear schedule": (eqd.linear_schedule(1000), eqd.Uniform, usual),
    "the bound's weights": (vp, eqd.LikelihoodImportance, weighted),
    "learned schedule": (learned, eqd.LowDiscrepancy, bound),
}
num_steps = 1000
shape = eqd.nn.UNetShape(
    in_channels=1,
    out_channels=1,
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_downsamples=(),
    num_classes=10,
)
style = eqd.nn.styles.iddpm(norm_groups=8)


def train(process, timesteps, loss):
    def loss_fn(denoiser, t, x0, label, *, key):
        return loss(eqd.predict(denoiser, t, x0, label, key=key)), {}

    net_key, train_key = jax.random.split(jax.random.key(0))
    net = eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), key=net_key)
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    state = eqd.train.init(
        eqd.Denoiser(net, process),
        optimiser,
        timesteps=timesteps(process),
        ema=(0.99,),
        key=train_key,
    )
    loss_fn = eqd.variance_minimising(loss_fn) if process is learned else loss_fn
    step, rng = eqd.train.make_step(loss_fn, optimiser), np.random.default_rng(0)
    for _ in range(num_steps):
        batch = rng.integers(len(images), size=32)
        state, _ = step(state, (images[batch], labels[batch]))
    return state.ema_net()


denoisers = {name: train(*recipe) for name, recipe in recipes.items()}

# %% [markdown]
# ## Bits per dimension
#
# The variational bound of each model on the 300 held-out images, with the same images and keys.

# %%
key, found = jax.random.key(1), {}
for name, denoiser in denoisers.items():
    found[name] = eqd.metrics.bound_bits(
        denoiser, held_out, held_out_labels, levels=17, num_terms=16, key=key
    )
    print(f"{name:20} {found[name]}")
ends = denoisers["learned schedule"].process
print(f"learned log-SNR: from {ends.log_snr_max:.2f} to {ends.log_snr_min:.2f}")

figure, axis = plt.subplots(figsize=(6, 2.4))
values = [each.value for each in found.values()]
axis.errorbar(values, [*found], xerr=[2 * each.stderr for each in found.values()], fmt="o")
axis.axvline(table.value, color="C1", ls="--")
axis.text(table.value, -0.8, " a table", color="C1", va="center")
axis.set(xlabel="bits/dim, fewer is better", ylim=(len(found) - 0.5, -1.2))

# %% [markdown]
# ## Where the bits go
#
# In continuous time the bound is half the integral over the log-SNR of the error in the noise: the
# area under these curves, in bits. To the right of the dotted line the noise is finer than the grey
# levels.

# %%
log_snrs = np.linspace(-5, 10, 31)
sample, sample_labels = held_out[:100], held_out_labels[:100]


def rate(denoiser, log_snr, x, label, key):
    p = eqd.predict(denoiser, denoiser.process.time(log_snr), x, label, key=key)
    return 0.5 * jnp.mean((p.estimate.noise - p.noise) ** 2) / np.log(2)


@eqx.filter_jit
def mean_rate(denoiser, log_snr):
    keys = jax.random.split(key, len(sample))
    of_images = jax.vmap(rate, in_axes=(None, None, 0, 0, 0))
    return jnp.mean(of_images(denoiser, log_snr, sample, sample_labels, keys))


figure, axis = plt.subplots(figsize=(6.4, 3.6))
for name, denoiser in denoisers.items():
    process = denoiser.process
    ends = [float(process.log_snr(jnp.asarray(t))) for t in (process.t1, process.t0)]
    covered = log_snrs[(log_snrs > ends[0]) & (log_snrs < ends[1])]
    axis.plot(covered, [mean_rate(denoiser, jnp.asarray(s)) for s in covered], label=name)
axis.axvline(-2 * np.log(start), color="C5", ls=":")
axis.set(xlabel="log-SNR", ylabel="bits/dim per unit of log-SNR", ylim=(0, None))
axis.legend()

# %% [markdown]
# Up to the dotted line the four curves are close. The two schedules go on, and what they pay there
# is most of the difference. The learned process also begins near the line, where the bound is best.
#
# Each model is one run, so the last hundredths mean little; [what each ingredient
# does](../likelihoods.md#what-each-ingredient-does) compares more of them, with a larger network.
#
# **Next:** [likelihoods](../likelihoods.md), their error bars, and what makes two numbers
# comparable; `python examples/train_cifar.py --process learned` trains this way on images.
