# %% [markdown]
# # One network, three views
#
# A network trained on the discrete chain of DDPM is also a flow and a stochastic differential
# equation. Nothing is converted: a schedule *is* a process, whose steps are whole times. So one
# denoiser is sampled by all three, has the bound of the chain, and has an exact likelihood.

# %%
import diffrax
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import eqdiff as eqd


# Eight Gaussians on a circle, so that the truth is known.
angles = 2 * np.pi * np.arange(8) / 8
centres = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
spread = 0.12
rng = np.random.default_rng(0)


def draw(num):
    noise = rng.standard_normal((num, 2)).astype(np.float32)
    return centres[rng.integers(8, size=num)] + spread * noise


# %% [markdown]
# ## Train on the chain
#
# The hybrid loss of Improved DDPM, on the cosine schedule with a thousand steps. The network has
# twice as many outputs as the data have dimensions: the other half is the variance of each reverse
# step.

# %%
schedule = eqd.cosine_schedule(1000)


def denoiser_of(net):
    return eqd.Denoiser(net, schedule, eqd.PredictNoise(), variance=eqd.LearnedRange())


def loss_fn(net, t, x0, args, *, key):
    return eqd.l_hybrid(eqd.predict(denoiser_of(net), t, x0, args, key=key)), {}


num_steps = 6000
net_key, train_key, sample_key = jax.random.split(jax.random.key(0), 3)
net = eqd.nn.MLP(2, 4, 128, 3, key=net_key)
optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
state = eqd.train.init(net, optimiser, timesteps=eqd.Uniform(schedule), ema=(0.999,), key=train_key)
step = eqd.train.make_step(loss_fn, optimiser)
for _ in range(num_steps):
    state, metrics = step(state, (draw(256), None))
denoiser = denoiser_of(state.ema_net())

# %% [markdown]
# ## Three views, one cloud
#
# The learned chain takes all thousand steps. The flow is an ordinary differential equation, solved
# adaptively; the reverse SDE takes fresh noise along the way. The lines are the paths of twenty
# samples.

# %%
views = {
    "the chain": eqd.Ancestral(),
    "the flow": eqd.ProbabilityFlow(diffrax.Tsit5(), rtol=1e-4, atol=1e-4),
    "the SDE": eqd.ReverseSDE(diffrax.ShARK(), rtol=1e-2, atol=1e-2),
}
prior_keys, path_keys = jax.random.split(sample_key, (2, 20))
starts = jax.vmap(lambda key: schedule.prior_sample((2,), key=key))(prior_keys)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8))
for axis, (name, sampler) in zip(axes, views.items(), strict=True):
    samples = eqd.generate(sampler, denoiser, 1000, (2,), key=sample_key)
    distance = np.linalg.norm(samples[:, None] - centres, axis=2)
    share = np.bincount(distance.argmin(1), minlength=8) / len(samples)
    off = np.sqrt(np.median(distance.min(1) ** 2) / np.log(4))
    print(f"{name}: spread {off:.3f}, shares of the eight {share.min():.3f} to {share.max():.3f}")
    axis.scatter(*samples.T, s=2)
    path_of = jax.vmap(sampler.trajectory, in_axes=(None, 0))
    paths = np.asarray(path_of(denoiser, starts, key=path_keys).x)
    for path in paths[:, :: max(1, paths.shape[1] // 60)]:
        axis.plot(*path.T, lw=0.7, color="C1", alpha=0.7)
    axis.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])

# %% [markdown]
# The truth is a spread of 0.120 and shares of 0.125, each ± 0.01 with a thousand samples. (The
# median of the squared distance from a centre is $\log 4$ variances.)
#
# ## And its exact likelihood
#
# The flow gives $\log p(x)$ of any point. Averaged over fresh data it falls short of the data's
# own, the negative entropy, by how far the model is from the truth: the Kullback–Leibler
# divergence.

# %%
flow, trace = views["the flow"], eqd.ExactTrace()


def log_prob(x, key):
    return eqd.log_likelihood(denoiser, x, flow=flow, trace=trace).log_prob


test = draw(1000)
model = eqd.map_examples(log_prob, test, key=sample_key, batch_size=500)
squares = ((test[:, None] - centres) ** 2).sum(2) / (2 * spread**2)
truth = np.log(np.exp(-squares).mean(1)) - np.log(2 * np.pi * spread**2)
gap = truth - model
print(f"model {model.mean():.3f}, truth {truth.mean():.3f} nats")
print(f"divergence {gap.mean():.3f} ± {gap.std() / np.sqrt(len(gap)):.3f} nats")

# %% [markdown]
# **Next:** [which sampler](which_sampler.md), by eye; the [theory](../theory.md) of why a schedule
# is a process.
