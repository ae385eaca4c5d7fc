"""One short training, the same whatever the devices: what the tests of devices compare."""

import jax
import numpy as np
import optax

import eqdiff as eqd
from eqdiff import nn, train


SCHEDULE = eqd.cosine_schedule(50)
N, STEPS = 16, 4
RNG = np.random.default_rng(0)
X0 = RNG.normal(size=(STEPS * N, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, STEPS * N).astype(np.int32)
OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def loss_fn(net, t, x0, args, *, key):
    prediction = eqd.predict(eqd.Denoiser(net, SCHEDULE), t, x0, args, key=key)
    return eqd.l_simple(prediction), {"x0": ((prediction.estimate.x0 - x0) ** 2).mean()}


def make_state(layout=train.Flat()):
    """Long enough for its vectors to be shared; its times depend on the order of losses."""
    net = nn.MLP(4, 4, 260, 2, num_classes=3, key=jax.random.key(0))
    timesteps = eqd.LossSecondMoment(SCHEDULE, history=2)
    return train.init(
        net, OPTIMISER, timesteps=timesteps, ema=(0.9,), layout=layout, key=jax.random.key(1)
    )


def share(index=0, count=1, step=0):
    """What the loader gives process `index` of `count`."""
    window = slice(step * N + index, (step + 1) * N, count)
    return X0[window], LABELS[window]


def trained(mesh=None, *, accumulate=1, layout=train.Flat(), index=0, count=1, state=None):
    """The state and metrics after the steps."""
    state = make_state(layout) if state is None else state
    step = train.make_step(loss_fn, OPTIMISER, mesh=mesh, accumulate=accumulate)
    metrics = []
    for n in range(int(state.step), STEPS):
        state, reported = step(state, share(index, count, n))
        metrics.append(reported)
    return state, metrics


def described(state, metrics):
    """Numbers to compare, as JSON has them."""
    nets = (state.net, state.ema_net())
    leaves = [np.asarray(x) for x in jax.tree.leaves(nets) if isinstance(x, jax.Array)]
    moments = jax.tree.map(np.asarray, state.timestep_state)
    return {
        "loss": [float(m.loss) for m in metrics],
        "terms": [float(m.terms["x0"]) for m in metrics],
        "norm": [float(m.grad_norm) for m in metrics],
        "quartiles": [np.asarray(m.quartile_sums["loss"]).tolist() for m in metrics],
        "nets": [x.reshape(-1)[:: max(x.size // 50, 1)].tolist() for x in leaves],
        "history": [np.nan_to_num(x).tolist() for x in jax.tree.leaves(moments)],
    }


def assert_agree(one, other, tolerance=2e-5):
    for name, expected in one.items():
        for a, b in zip(expected, other[name], strict=True):
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance / 10, err_msg=name)
