"""What the main job trains: data, network, denoiser and loss."""

# A resolved Config has no None left (`_config.resolve`), which its types cannot say.
# pyright: reportArgumentType=false, reportOptionalOperand=false, reportOperatorIssue=false

import jax
import jax.numpy as jnp
import optax
from _config import Config

import eqdiff as eqd
from eqdiff.data import Dataset


def find_data(config: Config, accelerator: bool) -> tuple[str, Dataset]:
    """The data set asked for, and its name as `--dataset` knows it.

    Only `auto` may choose another one, and says so.
    """
    data = config.data
    if data.dataset == "folder":
        if data.data_dir is None:
            raise ValueError("--dataset folder: say where the images are with --data-dir.")
        return "folder", eqd.data.image_folder(data.data_dir, image_size=data.image_size)
    if data.image_size is not None:
        raise ValueError("--image-size is for --dataset folder; the other data sets have one size.")
    if data.dataset == "digits" and data.data_dir is not None:
        raise ValueError("--data-dir is not for --dataset digits, which scikit-learn ships.")
    if data.dataset == "cifar10" or (data.dataset == "auto" and data.data_dir is not None):
        return "cifar10", eqd.data.cifar10(data.data_dir)
    if data.dataset == "auto" and accelerator:
        try:
            return "cifar10", eqd.data.cifar10()
        except eqd.data.DownloadError as e:
            print(f"{e}\nTraining on scikit-learn's digits instead.")
    elif data.dataset == "auto":
        print(
            "No accelerator: training on scikit-learn's 8x8 digits (--dataset cifar10 for "
            "CIFAR-10)."
        )
    return "digits", eqd.data.digits()


def make_schedule(config: Config) -> eqd.Schedule:
    make = {"cosine": eqd.cosine_schedule, "linear": eqd.linear_schedule}[config.diffusion.schedule]
    return make(config.diffusion.num_timesteps)


def make_net(config: Config, data: Dataset, *, key: jax.Array) -> eqd.nn.UNet:
    """Improved DDPM's U-Net, with as many levels as the sides of the images allow."""
    model = config.model
    if model.class_conditional and data.num_classes is None:
        raise ValueError(
            "--class-conditional: these images have no classes. Put each class into its own "
            "sub-folder."
        )
    channels, *sides = data.shape
    levels = 1
    while levels < 4 and all(s % 2**levels == 0 and s // 2**levels >= 4 for s in sides):
        levels += 1
    # Improved DDPM attends at 16x16 and 8x8; an 8x8 image already is that small, so there it is the
    # lower level alone.
    attention = [2**i for i in range(levels) if max(sides) // 2**i in (4, 8, 16)]
    if max(sides) >= 32:
        attention = [d for d in attention if max(sides) // d >= 8]
    elif max(sides) == 8:
        attention = [2]
    shape = eqd.nn.UNetShape(
        in_channels=channels,
        out_channels=channels if config.diffusion.loss == "simple" else 2 * channels,
        channels=model.channels,
        num_res_blocks=model.num_res_blocks,
        channel_mult=(1, 2, 2, 2)[:levels],
        attention_downsamples=tuple(attention),
        num_classes=data.num_classes if model.class_conditional else None,
    )
    groups = 32 if model.channels % 32 == 0 else 8
    style = eqd.nn.styles.iddpm(dropout=model.dropout, norm_groups=groups)
    dtype = jnp.dtype(model.compute_dtype)
    return eqd.nn.UNet(shape, style, eqd.nn.embeddings.iddpm(), compute_dtype=dtype, key=key)


def make_denoiser(net: eqd.nn.UNet, schedule: eqd.Schedule, config: Config) -> eqd.Denoiser:
    learned = config.diffusion.loss != "simple"
    variance = eqd.LearnedRange() if learned else eqd.FixedLarge()
    return eqd.Denoiser(net, schedule, eqd.PredictNoise(), variance=variance)


def make_loss(config: Config, levels: int):
    """The paper's objective for one example."""
    schedule = make_schedule(config)
    kind = config.diffusion.loss

    def loss_fn(net, t, x0, args, *, key):
        p = eqd.predict(make_denoiser(net, schedule, config), t, x0, args, key=key)
        simple = eqd.l_simple(p)
        # L_hybrid teaches the bound to the variance alone; L_vlb is the bound itself.
        vlb = eqd.l_vlb(p if kind == "vlb" else eqd.stop_mean(p), levels=levels)
        loss = {"hybrid": simple + 1e-3 * vlb, "simple": simple, "vlb": vlb}[kind]
        return loss, {"simple": simple, "vlb": vlb}

    return loss_fn


def make_optimiser(config: Config) -> optax.GradientTransformation:
    training = config.training
    warmup = min(training.warmup, max(1, training.steps // 10))
    rate = optax.linear_schedule(0.0, training.learning_rate, warmup)
    if training.decay == "cosine":
        left = max(1, training.steps - warmup)
        decay = optax.cosine_decay_schedule(training.learning_rate, left)
        rate = optax.join_schedules([rate, decay], [warmup])
    return optax.chain(optax.clip_by_global_norm(training.grad_clip), optax.adam(rate))


def make_timesteps(config: Config) -> eqd.AbstractTimesteps:
    make = {
        "uniform": eqd.Uniform,
        "low-discrepancy": eqd.LowDiscrepancy,
        "second-moment": eqd.LossSecondMoment,
        "smoothed-second-moment": eqd.SmoothedSecondMoment,
    }
    return make[config.diffusion.timesteps](make_schedule(config))


def batch_args(labels, config: Config):
    """What conditions the network: the labels, if it is class-conditional."""
    return labels if config.model.class_conditional else None
