"""Trains, samples and scores a diffusion model of images. Made to be copied."""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import OmitArgPrefixes

import eqdiff as eqd


# What may differ when a run goes on; what may if --adjust is given; what else is recorded.
FREE = ("data_dir", "steps", "sample_steps")
ADJUSTABLE = ("learning_rate", "warmup", "cosine_decay", "grad_clip", "dropout", "dtype")
NOTED = ("process", "preset", "num_timesteps", "data_dir", "image_size", "image_channels", "seed")


def main(
    process: eqd.train.recipes.Process = "cosine",
    preset: eqd.train.recipes.Preset | None = None,
    small: bool | None = None,
    num_timesteps: int | None = None,
    dataset: Literal["cifar10", "digits", "folder"] | None = None,
    data_dir: Path | None = None,
    image_size: int | None = None,
    image_channels: int | None = None,
    class_conditional: bool | None = None,
    compute_dtype: Literal["float32", "bfloat16"] | None = None,
    change: OmitArgPrefixes[eqd.train.Changes] = eqd.train.Changes(),
    accumulate: int = 1,
    seed: int = 0,
    run_dir: Path | None = None,
    overwrite: bool = False,
    adjust: bool = False,
    from_step: int | None = None,
    max_spoilt: int = 0,
    skip_damaged: int = 0,
    log_every: int = 100,
    save_every: int = 5000,
    tensorboard: bool = False,
    wandb: str | None = None,
    eval_images: int = 200,
    eval_samples: int = 400,
    shards: int = 1,
    cluster: bool = False,
) -> None:
    """Trains a diffusion model, samples from it and scores it in bits/dim.

    With no arguments: 8x8 handwritten digits on a CPU, in a few minutes; CIFAR-10 on a GPU. Ctrl-C
    saves and ends, and the same command goes on. The run's folder holds config.json, metrics.jsonl,
    pictures, checkpoints, model.safetensors (for sample.py and likelihood.py) and report.md.

    Args:
        process: a schedule of Improved DDPM, trained with L_hybrid; an SDE of Song et al., EDM's or
            a rectified flow, by score matching; or one that is learned, for the likelihood.
        preset: network and numbers of a paper, from eqdiff.train.recipes. Default: iddpm for the
            chain, ncsnpp for ve, ddpmpp for vp and sub-vp, vdm for learned, and edm.
        small: the preset in a size for a CPU. Default: for digits, and where there is no GPU.
        num_timesteps: of the chain. Default: 4000, and 1000 if small.
        dataset: default: CIFAR-10 on a GPU, otherwise digits. folder: your images, in --data-dir.
        data_dir: where your images, or CIFAR-10's binary files, are (default: the user's cache).
        image_size: resize and crop a folder's images to this side.
        image_channels: read all as grey (1), grey and alpha (2), RGB (3) or RGBA (4).
        class_conditional: condition on the class. Default: for digits.
        compute_dtype: what convolutions compute in. Default: bfloat16 on a GPU.
        accumulate: microbatches in a step, to save memory.
        seed: of weights, order of the data, times and noise.
        run_dir: folder of the run. Default: runs/DATASET-PROCESS.
        overwrite: begin anew; the run that is there is moved into its folder replaced_1.
        adjust: go on with another learning rate, warm-up, decay, clipping, dropout or dtype.
        from_step: go on from this checkpoint, not from the latest.
        max_spoilt: how many steps may have a loss that is not finite; they change nothing.
        skip_damaged: how many damaged files may be replaced by their neighbours.
        log_every: steps between lines of metrics.jsonl.
        save_every: steps between checkpoints, pictures and scores; at most a quarter.
        tensorboard: also write TensorBoard event files.
        wandb: also send metrics to this project of Weights & Biases.
        eval_images: held-out images that the report scores.
        eval_samples: samples that the report draws.
        shards: devices that share one copy of parameters, averages and optimiser state.
        cluster: join the processes of SLURM, Open MPI, Kubernetes or a TPU pod.
    """
    flags = dict(locals())
    if cluster:
        eqd.train.start_processes()
    gpu = jax.default_backend() != "cpu"
    if eval_samples < 1 or eval_images < 2:
        raise ValueError("--eval-samples and --eval-images: expected at least 1 and 2.")
    data = load_data(dataset, data_dir, image_size, image_channels)
    found = dataset or data.name
    print(data.description)
    conditional = found == "digits" if class_conditional is None else class_conditional
    num_classes = data.num_classes if conditional else None
    images, classes = data.held_out(eval_images)
    labels = classes if conditional else None
    small = (found == "digits" or not gpu) if small is None else small
    options: dict[str, Any] = dict(num_timesteps=num_timesteps, small=small, levels=data.levels)
    recipe = eqd.train.recipes.named(process, preset, example=data.shape, **options).changed(change)
    dtype = compute_dtype or ("bfloat16" if gpu else "float32")

    def loss_fn(net, t, x0, args, *, key):  # one example; only `net` is differentiated
        p = eqd.predict(recipe.denoiser(net), t, x0, args if conditional else None, key=key)
        return recipe.loss(p, levels=data.levels)  # L_hybrid, score matching, or the bound

    if isinstance(recipe.process, eqd.LearnedVPSDE):
        loss_fn = eqd.variance_minimising(loss_fn)
    net_key, key, eval_key = jax.random.split(jax.random.key(seed), 3)
    options = dict(num_classes=num_classes, compute_dtype=jnp.dtype(dtype), key=net_key)
    net, optimiser = recipe.network(data.shape, levels=data.levels, **options), recipe.optimiser()
    start = eqd.train.init(net, optimiser, timesteps=recipe.timesteps, ema=(recipe.ema,), key=key)
    mesh = eqd.train.data_mesh(shards=shards) if jax.device_count() > 1 or shards > 1 else None
    step = eqd.train.make_step(loss_fn, optimiser, mesh=mesh, accumulate=accumulate)
    size = recipe.batch_size // jax.process_count()
    options = dict(horizontal_flip=recipe.horizontal_flip, skip_damaged=skip_damaged)
    batches = eqd.data.loader(data.train, size, seed=seed, **options)
    settings = {k: flags[k] for k in NOTED} | dict(dataset=found, small=small, shape=data.shape)
    settings |= dict(dtype=dtype, num_classes=num_classes, levels=data.levels) | recipe.numbers()
    folder = run_dir or Path("runs") / f"{found}-{process}"
    sinks: list[Any] = [eqd.train.TensorBoard(folder / "board")] if tensorboard else []
    sinks += [eqd.train.WandB(wandb, config=settings)] if wandb else []
    options = dict(adjust=adjust, overwrite=overwrite, from_step=from_step, sinks=sinks)
    options |= dict(free=FREE, adjustable=ADJUSTABLE, again=eqd.train.resume_command(), keep_best=1)
    total, scored = recipe.num_steps, dict[str, Any](levels=data.levels, key=eval_key, mesh=mesh)
    log_every, save_every = min(log_every, -(-total // 100)), min(save_every, -(-total // 4))
    every = dict[str, Any](log_every=log_every, save_every=save_every, max_spoilt=max_spoilt)
    state, bound, given = start, None, (data, num_classes, eval_key, mesh, folder)
    with eqd.train.Run(folder, settings, **options) as run:
        for state in eqd.train.fit(step, start, batches, num_steps=total, run=run, **every):
            denoiser = recipe.denoiser(state.ema_net())
            if eqd.train.is_writer():
                eqd.save_model(folder / "model.safetensors", denoiser, overwrite=True)
            picture = f"samples/step_{int(state.step):08d}.png"
            shown = draw(recipe, 50, denoiser, 100, *given, picture)
            bound = eqd.metrics.bound_bits(denoiser, images, labels, **scored)
            also = dict(frechet=judge(data, *shown)[0].frechet) if data.name == "digits" else {}
            run.record(state, score=float(bound.value), bound=bound.value, **also)
        denoiser = recipe.denoiser(state.ema_net())
        flow = eqd.metrics.flow_bits(denoiser, images, labels, **scored, progress=True)
        drawn = draw(recipe, recipe.sample_steps, denoiser, eval_samples, *given, "samples.png")
        report(run, state, data, bound, flow, *drawn)


def draw(recipe, most, denoiser, num, data, num_classes, key, mesh, folder, name):
    """Samples by at most so many steps, and their classes; a picture of the first hundred."""
    sampler = recipe.sampler(min(most, recipe.sample_steps))
    classes = None if num_classes is None else np.arange(num, dtype=np.int32) % num_classes
    options = dict[str, Any](args=classes, key=key, batch_size=100, mesh=mesh, progress=num > 100)
    samples = eqd.generate(sampler, eqd.Clip(denoiser), num, data.shape, **options)
    if eqd.train.is_writer():
        eqd.data.write_grid(folder / name, samples[:100], levels=data.levels, columns=10)
    return samples, classes


def report(run, state, data, bound, flow, samples, classes):
    bits: list[Any] = [("of", "bits/dim"), ("variational bound", bound), ("probability flow", flow)]
    tables: dict[str, Any] = {f"{bound.num} held-out images": bits}
    values: dict[str, Any] = dict(bound=bound, flow=flow)
    if data.name == "digits":
        quality, values["table"] = judge(data, samples, classes)
        values["quality"], tables["Samples"] = quality, quality.table()
        bits.append(("all of them, by a table of pixels for each class", values["table"]))
    eqd.train.write_report(run, state, title=f"A model of {data.name}", tables=tables, **values)
    print(f"Bound {bound}, flow {flow} bits/dim. Report and pictures: {run.folder / 'report.md'}")


def judge(data, samples, classes):
    """The quality of samples of a small data set, and the bits/dim of a table of its pixels."""
    x, labels = data.train.take(np.arange(len(data.train)))
    real = (data.normalise(x), labels), data.held_out()
    quality = eqd.metrics.sample_quality(samples, classes, *real, levels=data.levels)
    return quality, eqd.metrics.table_bits(*real, levels=data.levels)


def load_data(dataset, directory, image_size, channels) -> eqd.data.Dataset:
    if dataset == "folder" and directory is not None:
        try:
            return eqd.data.image_folder(directory, image_size=image_size, channels=channels)
        except ValueError as error:
            told = str(error).replace("image_size=", "--image-size ")
            raise ValueError(told.replace("channels=", "--image-channels ")) from error
    if dataset == "folder" or image_size or channels or (dataset == "digits" and directory):
        raise ValueError(
            "--dataset folder needs --data-dir, and has --image-size and --image-channels; digits "
            "have none of these, CIFAR-10 has --data-dir."
        )
    if dataset == "digits" or not (dataset or directory or jax.default_backend() != "cpu"):
        return eqd.data.digits()
    try:
        return eqd.data.cifar10(directory)
    except eqd.data.DownloadError as error:
        if dataset == "cifar10":
            raise
        print(f"{error}\nTraining on scikit-learn's digits instead.")
    return eqd.data.digits()


if __name__ == "__main__":
    eqd.train.command(main)
