# %% [markdown]
# # Conditional density for a simulator
#
# A simulator turns parameters θ into data $x$, and you want to know which parameters could have
# made the data that you observed: the posterior $p(\theta|x)$. Train a denoiser of θ that sees $x$,
# and it learns the posterior for every $x$ at once, from simulations alone. This page does so for a
# simulator whose posterior is known, and puts the truth beside every answer.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import eqdiff as eqd


rng = np.random.default_rng(0)


def crescent(num):
    """The simulator's noise: points on a half circle, blurred by a tenth of its radius."""
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, num), rng.normal(0.1, 0.01, num)
    return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)


def centre(theta):
    total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
    return np.stack([-np.abs(total), difference], axis=1) / np.sqrt(2)


def simulate(num):
    """Parameters, uniform on the square from −1 to 1, and the data that they make."""
    theta = rng.uniform(-1, 1, (num, 2))
    return theta.astype(np.float32), (centre(theta) + crescent(num)).astype(np.float32)


# %% [markdown]
# This is the two-moons simulator of the benchmark by [Lueckmann et al.
# (2021)](https://arxiv.org/abs/2101.04653). Its absolute value hides a sign, so each observation
# has two explanations, and each of them is a thin crescent.
#
# ## The truth
#
# Solving for θ gives exact draws of the posterior, and the same draws give its normalising
# constant:


# %%
def explanations(x, num):
    """The two θ of each draw of the noise, and which of them exist within the prior."""
    u, v = (x - crescent(num)).T
    both = [np.stack([s * -u - v, s * -u + v], axis=1) / np.sqrt(2) for s in (1, -1)]
    return np.stack(both), [(u < 0) & (np.abs(theta).max(1) < 1) for theta in both]


def exact_draws(x, num):
    theta, valid = explanations(x, 4 * num)
    return rng.permutation(theta[np.array(valid)])[:num]


def exact_log_prob(theta, x):
    offset = x - centre(theta) - [0.25, 0]
    radius = np.linalg.norm(offset, axis=1)
    gauss = np.exp(-0.5 * ((radius - 0.1) / 0.01) ** 2) / (0.01 * np.sqrt(2 * np.pi))
    evidence = [np.sum(np.mean(explanations(one, 20_000)[1], axis=1)) for one in x]
    return np.log(gauss / (np.pi * radius)) - np.log(evidence)


# %% [markdown]
# ## Train
#
# The data reach the network as `args`. Any network will do; this one sees them next to the noisy
# parameters. The crescents are a hundred times thinner than the square, so the noise must go down
# to a small fraction of their width: EDM's process, preconditioning and noise levels do that, here
# with the mean of the levels moved down.


# %%
class Net(eqx.Module):
    mlp: eqd.nn.MLP

    def __call__(self, c_noise, theta, x, *, key=None):
        return self.mlp(c_noise, jnp.concatenate([theta, x]), key=key)


process = eqd.EDMSDE(t0=0.002, t1=20.0)


def denoiser_of(net):
    return eqd.Denoiser(net, process, eqd.EDMPreconditioning(0.58))


def loss_fn(net, t, theta, x, *, key):
    return eqd.l_simple(eqd.predict(denoiser_of(net), t, theta, x, key=key)), {}


num_steps = 6000
net_key, train_key, draw_key = jax.random.split(jax.random.key(0), 3)
optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
net = Net(eqd.nn.MLP(4, 2, 128, 3, key=net_key))
times = eqd.LogNormal(process, mean=-2.5, std=1.6)
state = eqd.train.init(net, optimiser, timesteps=times, ema=(0.999,), key=train_key)
step = eqd.train.make_step(loss_fn, optimiser)
for _ in range(num_steps):
    state, metrics = step(state, simulate(512))
denoiser = denoiser_of(state.ema_net())

# %% [markdown]
# ## Samples
#
# `generate` draws for all observations at once: `args` has one row for each sample. The third
# observation lies so far out that the edge of the prior cuts its crescents.

# %%
sampler = eqd.DDIM(60, spacing=eqd.log_snr_times)
observed = np.array([[0.0, 0.0], [-0.5, 0.4], [-0.9, -0.3]], np.float32)
num = 1000
drawn = eqd.generate(
    sampler, denoiser, 3 * num, (2,), args=np.repeat(observed, num, axis=0), key=draw_key
).reshape(3, num, 2)
figure, axes = plt.subplots(2, 3, figsize=(8.4, 5.8), sharex=True, sharey=True)
for column, x, learned in zip(axes.T, observed, drawn, strict=True):
    column[0].scatter(*exact_draws(x, num).T, s=1, color="C1")
    column[1].scatter(*learned.T, s=1)
    column[0].set_title(f"x = ({x[0]:g}, {x[1]:g})")
    for axis in column:
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
axes[0, 0].set_ylabel("exact")
axes[1, 0].set_ylabel("learned")

# %% [markdown]
# ## Density
#
# The probability flow gives the learned density of any θ, exactly for this network. Averaged over
# simulations, it falls short of the true posterior's by the Kullback–Leibler divergence between the
# two. Without a truth, the same average still compares networks: the higher, the better.

# %%
theta, x = simulate(400)
flow, trace = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3), eqd.ExactTrace()


def log_prob(theta, x, key):
    return eqd.log_likelihood(denoiser, theta, x, flow=flow, trace=trace).log_prob


learned = eqd.map_examples(log_prob, theta, x, key=draw_key)
truth = exact_log_prob(theta.astype(np.float64), x)
print(f"exact {eqd.metrics.mean(truth)}, learned {eqd.metrics.mean(learned)} nats")
print(f"divergence {eqd.metrics.mean(truth - learned)} nats")
print(f"the prior alone: {-np.log(4):.3f} nats")

# %% [markdown]
# ## Calibration
#
# Where the truth is unknown, you can still ask whether the posterior is calibrated. Take θ from the
# prior, simulate, draw from the learned posterior of these data: if it is right, θ is just one more
# draw, and its rank among them is uniform. The rank of the *density* tests the shape: how often
# does the region of highest density of each level hold the truth?

# %%
ranks = eqd.metrics.posterior_ranks(
    sampler, denoiser, theta[:200], x[:200], num_draws=19, flow=flow, key=train_key, batch_size=100
)
check = eqd.metrics.calibration(ranks, num_draws=19)
for row in check.table(["θ₁", "θ₂", "density"]):
    print("  ".join(cell.ljust(16) for cell in row))

figure, axis = plt.subplots(figsize=(4.2, 4))
axis.fill_between(check.levels, check.levels - check.band, check.levels + check.band, alpha=0.2)
for curve, name, colour in zip(
    np.asarray(check.coverage).T, ["θ₁", "θ₂", "density"], ["C0", "C1", "C2"], strict=True
):
    axis.plot(check.levels, curve, color=colour, label=name)
axis.set(xlabel="level", ylabel="share of truths inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
axis.legend(loc="upper left")

# %% [markdown]
# A calibrated posterior stays within the band in 19 cases of 20; all three curves do. The lowest
# p-value, the density's, is where a divergence of a twentieth of a nat begins to show.
#
# **Next:** [how to read such a check](../simulators.md#is-it-calibrated), and posteriors of linear
# measurements without training; [inverse problems](../inverse-problems.md) for images.
