"""The programs that are measured: one training step, a forward pass, a sampler, a likelihood call.

Each is a function of pytrees of arrays for a batch, as a user would write it: what `h100.py`
compiles for a chip that is not there, `gpu_suite.py` runs on one that is. A `Setting` is a
published network with the process and the loss that it was trained with.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import eqdiff as eqd
from eqdiff.nn import presets


Options = Mapping[str, Any]


class Setting(NamedTuple):
    """A published experiment; `small` are options for a network of one block per level."""

    net: Callable[..., Any]
    small: Options
    shape: tuple[int, ...]
    num_classes: int | None
    denoiser: Callable[[Any], eqd.Denoiser]
    loss: Callable[[eqd.Prediction], tuple[Any, dict[str, Any]]]
    timesteps: Callable[[Any], eqd.AbstractTimesteps]


def hybrid(p: eqd.Prediction) -> tuple[Any, dict[str, Any]]:
    """L_hybrid of Improved DDPM, as `examples/train_cifar.py` trains with."""
    simple, vlb = eqd.l_simple(p), eqd.l_vlb(eqd.stop_mean(p), levels=256)
    return simple + 1e-3 * vlb, {"simple": simple, "vlb": vlb}


def _simple(p: eqd.Prediction) -> tuple[Any, dict[str, Any]]:
    return eqd.l_simple(p), {}


def _score(p: eqd.Prediction) -> tuple[Any, dict[str, Any]]:
    return eqd.score_matching(p), {}


def _learned(schedule: eqd.Schedule) -> Callable[[Any], eqd.Denoiser]:
    return lambda net: eqd.Denoiser(net, schedule, variance=eqd.LearnedRange())


def _small_iddpm(*, num_res_blocks: int, key: Any, **options: Any) -> Any:
    """`iddpm_cifar10` but for its number of blocks."""
    shape: dict[str, Any] = dict(channel_mult=(1, 2, 2, 2), attention_downsamples=(2, 4))
    options = dict(num_res_blocks=num_res_blocks, dropout=0.3) | options
    return presets.iddpm_imagenet64(key=key, **(shape | options))


def _iddpm(*, key: Any, **options: Any) -> Any:
    make = _small_iddpm if "num_res_blocks" in options else presets.iddpm_cifar10
    return make(key=key, **options)


def _dit(*, key: Any, **options: Any) -> Any:
    """DiT-B/2 for the latents of 256×256 images."""
    latents = dict(in_channels=4, out_channels=8, patch_size=2, num_classes=1000)
    return presets.dit("B", key=key, **(latents | options))


_ONE = {"num_res_blocks": 1}
_CIFAR10 = (3, 32, 32)

SETTINGS = {
    "iddpm_cifar10": Setting(
        _iddpm,
        _ONE,
        _CIFAR10,
        None,
        _learned(eqd.cosine_schedule(4000)),
        hybrid,
        eqd.LowDiscrepancy,
    ),
    "ddpmpp_cifar10": Setting(
        presets.ddpmpp_cifar10,
        _ONE,
        _CIFAR10,
        None,
        lambda net: eqd.Denoiser(net, eqd.VPSDE()),
        _simple,
        eqd.Uniform,
    ),
    "ncsnpp_cifar10": Setting(
        presets.ncsnpp_cifar10,
        _ONE,
        _CIFAR10,
        None,
        lambda net: eqd.Denoiser(net, eqd.VESDE(), eqd.PredictScore()),
        _score,
        eqd.Uniform,
    ),
    "edm_ddpmpp_cifar10": Setting(
        presets.edm_ddpmpp_cifar10,
        _ONE,
        _CIFAR10,
        None,
        lambda net: eqd.Denoiser(net, eqd.EDMSDE(), eqd.EDMPreconditioning()),
        _simple,
        eqd.LogNormal,
    ),
    "adm_imagenet64": Setting(
        lambda **options: presets.adm_imagenet(64, **options),
        _ONE,
        (3, 64, 64),
        1000,
        _learned(eqd.cosine_schedule(1000)),
        hybrid,
        eqd.Uniform,
    ),
    "dit_b2": Setting(
        _dit,
        {"depth": 2},
        (4, 32, 32),
        1000,
        _learned(eqd.linear_schedule(1000)),
        hybrid,
        eqd.Uniform,
    ),
}


class Program(NamedTuple):
    """A function for a batch, its arguments (arrays or their shapes), and whether it is given its
    first argument for good. Per call it has `turns` turns of a loop, which are what is measured.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    donates: bool = False
    turns: int = 1


def make_optimiser() -> optax.GradientTransformation:
    """Adam with warm-up and clipping, as `examples/train_cifar.py` has it.

    Its rate, and that of the average, are for a run of minutes.
    """
    rate = optax.linear_schedule(0.0, 2e-4, 200)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def make_net(setting: Setting, dtype: str, options: Options, *, key: Any) -> Any:
    """The network, computing in `dtype`; with options of its own."""
    return setting.net(compute_dtype=jnp.dtype(dtype), key=key, **options)


def init_state(setting: Setting, dtype: str, options: Options) -> eqd.train.TrainState:
    """The state of a run at step 0."""
    net = make_net(setting, dtype, options, key=jax.random.key(0))
    timesteps = setting.timesteps(setting.denoiser(net).process)
    key = jax.random.key(1)
    return eqd.train.init(net, make_optimiser(), timesteps=timesteps, ema=(0.999,), key=key)


def make_step(setting: Setting, make: Callable[..., Any] = eqd.train.make_step) -> Any:
    """The train step of a setting, or what else `make` makes of its loss and its optimiser."""

    def loss_fn(net, t, x0, args, *, key):
        return setting.loss(eqd.predict(setting.denoiser(net), t, x0, args, key=key))

    return make(loss_fn, make_optimiser())


def labels(setting: Setting, batch: int) -> Any:
    """Classes for a batch, or `None`."""
    return None if setting.num_classes is None else jnp.zeros(batch, jnp.int32)


def train_program(setting: Setting, state: eqd.train.TrainState, batch: int) -> Program:
    """One optimiser step."""
    images = jax.ShapeDtypeStruct((batch, *setting.shape), jnp.float32)
    step = make_step(setting)
    return Program(step, (state, (images, labels(setting, batch))), donates=True)


def forward_program(setting: Setting, net: Any, batch: int) -> Program:
    """One call of the network, without dropout."""

    def forward(net, c_noise, x, args):
        return jax.vmap(net)(c_noise, x, args)

    c_noise = jax.ShapeDtypeStruct((batch,), jnp.float32)
    x = jax.ShapeDtypeStruct((batch, *setting.shape), jnp.float32)
    return Program(forward, (net, c_noise, x, labels(setting, batch)))


def sampler_program(setting: Setting, net: Any, batch: int, steps: int = 10) -> Program:
    """All steps of DDIM, which are those of a loop."""

    def sample(net, x1, args):
        denoiser, sampler = setting.denoiser(net), eqd.DDIM(steps)
        return jax.vmap(lambda x, args: sampler(denoiser, x, args))(x1, args)

    x = jax.ShapeDtypeStruct((batch, *setting.shape), jnp.float32)
    return Program(sample, (net, x, labels(setting, batch)), turns=steps)


def likelihood_program(setting: Setting, net: Any, batch: int) -> Program:
    """One call of the probability flow's velocity with its divergence along one probe."""

    def call(net, t, x, probes, args):
        def one(t, x, probes, args):
            flow = eqd.terms.augmented_flow(setting.denoiser(net), eqd.Hutchinson(), probes)
            return flow.vf(t, (x, jnp.zeros(1)), args)

        return jax.vmap(one)(t, x, probes, args)

    x = jax.ShapeDtypeStruct((batch, *setting.shape), jnp.float32)
    probes = jax.ShapeDtypeStruct((batch, 1, *setting.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((batch,), jnp.float32)
    return Program(call, (net, t, x, probes, labels(setting, batch)))


def abstract_programs(
    setting: Setting, batch: int, dtype: str, options: Options
) -> dict[str, Callable[[], Program]]:
    """Every program by its name, of shapes alone: nothing is computed."""

    def net():
        key = jax.random.key(0)
        return eqx.filter_eval_shape(lambda: make_net(setting, dtype, options, key=key))

    def state():
        return eqx.filter_eval_shape(lambda: init_state(setting, dtype, options))

    return {
        "train": lambda: train_program(setting, state(), batch),
        "forward": lambda: forward_program(setting, net(), batch),
        "sampler": lambda: sampler_program(setting, net(), batch),
        "likelihood": lambda: likelihood_program(setting, net(), batch),
    }


class Flat(NamedTuple):
    """A program as a function of lists of arrays: those it keeps for good, and the others."""

    fn: Callable[[list[Any], list[Any]], list[Any]]
    given: list[jax.ShapeDtypeStruct]
    lent: list[jax.ShapeDtypeStruct]


def flatten(program: Program) -> Flat:
    """Leaves in, leaves out; PRNG keys as their data, which any device can take."""

    def is_data(leaf: Any) -> bool:
        return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))

    def is_key(leaf: Any) -> bool:
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    dynamic, static = eqx.partition(program.args, is_data)
    given, given_tree = jax.tree.flatten(dynamic[0])
    lent, lent_tree = jax.tree.flatten(dynamic[1:])

    def spec(leaf: Any) -> jax.ShapeDtypeStruct:
        leaf = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    def wrapped(leaves: list[Any], like: list[Any]) -> list[Any]:
        return [
            jax.random.wrap_key_data(a) if is_key(b) else a
            for a, b in zip(leaves, like, strict=True)
        ]

    def fn(first: list[Any], others: list[Any]) -> list[Any]:
        dynamic = (
            jax.tree.unflatten(given_tree, wrapped(first, given)),
            *jax.tree.unflatten(lent_tree, wrapped(others, lent)),
        )
        out = jax.tree.leaves(eqx.filter(program.fn(*eqx.combine(dynamic, static)), eqx.is_array))
        return [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in out]

    return Flat(fn, [spec(leaf) for leaf in given], [spec(leaf) for leaf in lent])
