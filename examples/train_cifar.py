"""Trains, samples and scores an image diffusion model: `python examples/train_cifar.py`.

`--help` lists the flags.
"""

# A resolved Config has no None left (`_config.resolve`), which its types cannot say.
# pyright: reportArgumentType=false, reportOptionalOperand=false, reportOperatorIssue=false

import time

import _score
import equinox as eqx
import jax
import numpy as np
from _config import Config, parse, resolve
from _evaluate import count_parameters, evaluate
from _job import (
    batch_args,
    find_data,
    make_denoiser,
    make_loss,
    make_net,
    make_optimiser,
    make_schedule,
    make_timesteps,
)
from _run import compilation_cache, EXPECTED, fail, Run
from tqdm import tqdm

import eqdiff as eqd
from eqdiff.data import Dataset


class Diverged(ValueError):
    """The loss is no longer a number."""


def main() -> None:
    config = parse()
    start = time.monotonic()
    accelerator = jax.default_backend() != "cpu"
    compilation_cache()
    dataset, data = find_data(config, accelerator)
    config = resolve(config, dataset, accelerator)
    run = Run(config)
    resuming = run.open(config, data)
    state, seconds = train(config, data, run, resuming)
    if state is not None:
        evaluate(config, data, run, state, seconds, start)


def train(config: Config, data: Dataset, run: Run, resuming: bool):
    """Trains to the last step, from wherever the run is; `None` if it was stopped before."""
    training = config.training
    key = jax.random.key(training.seed)
    net_key, state_key = jax.random.split(key)
    optimiser = make_optimiser(config)
    state = eqd.train.init(
        eqx.filter_jit(lambda key: make_net(config, data, key=key))(net_key),
        optimiser,
        timesteps=make_timesteps(config),
        ema=(training.ema,),
        key=state_key,
    )
    batches = eqd.data.loader(
        data.train,
        training.batch_size,
        seed=training.seed,
        horizontal_flip=config.data.horizontal_flip,
    )
    extra = {"training": 0.0, "compilation": 0.0, "images": 0}
    if resuming:
        state, saved, step = run.checkpointer.restore(state)
        batches.set_state(saved["batches"])
        extra = saved["seconds"]
        print(f"Resuming {run.folder} at step {step} of {training.steps}.")
    describe(config, data, state.net)
    mesh = eqd.train.data_mesh() if jax.device_count() > 1 else None
    step_fn = eqd.train.make_step(
        make_loss(config, data.levels), optimiser, mesh=mesh, accumulate=training.accumulate
    )
    sinks = []
    if config.output.tensorboard:
        sinks.append(eqd.train.TensorBoard(run.folder / "tensorboard"))
    with (
        eqd.train.MetricLog(run.metrics, last_step=int(state.step), sinks=sinks) as log,
        eqd.train.GracefulExit() as stop,
    ):
        loop = Loop(config, data, run, log, extra)
        state = loop.run(state, step_fn, batches, stop)
    return state, extra


class Loop:
    """Steps, and what happens between them: logging, pictures, checkpoints."""

    def __init__(self, config: Config, data: Dataset, run: Run, log, extra: dict):
        self.config, self.data, self.folder, self.log, self.extra = config, data, run, log, extra
        self.pending: list[eqd.train.StepMetrics] = []
        self.since = time.monotonic()

    def run(self, state, step_fn, batches, stop):
        output, total = self.config.output, self.config.training.steps
        step = int(state.step)
        with tqdm(total=total, initial=step, unit="step", desc="training", smoothing=0.05) as bar:
            while step < total and not stop.requested:
                images, labels = next(batches)
                began = time.monotonic()
                state, metrics = step_fn(state, (images, batch_args(labels, self.config)))
                step += 1
                self.pending.append(metrics)
                if self.extra["images"] == 0:
                    jax.block_until_ready(metrics)
                    self.extra["compilation"] = time.monotonic() - began
                    self.since = time.monotonic()
                self.extra["images"] += len(images)
                bar.update()
                last = step == total
                if step % output.log_every == 0 or last:
                    self.write_log(step, bar)
                if step % output.sample_every == 0 and not (last or stop.requested):
                    self.pause(self.picture, state, step)
                if step % output.checkpoint_every == 0 or last:
                    self.write_log(step, bar)
                    self.pause(self.checkpoint, state, batches, step)
            if step < total:
                # Not in the loop: a signal may come at any moment, also between what a step asks of
                # it and the loop's condition.
                self.write_log(step, bar)
                self.pause(self.checkpoint, state, batches, step)
        if step < total:
            assert stop.signal is not None
            print(
                f"\n{stop.signal.name}: saved step {step} to {self.folder.folder}. The same "
                "command resumes."
            )
            return None
        return state

    def write_log(self, step: int, bar) -> None:
        """Waits for the steps since the last line, checks them and logs them."""
        if not self.pending:
            return
        summary = eqd.train.summarise(self.pending)
        elapsed = time.monotonic() - self.since
        self.extra["training"] += elapsed
        images = len(self.pending) * self.config.training.batch_size
        summary["images_per_second"] = images / elapsed
        self.pending.clear()
        self.since = time.monotonic()
        if summary["nonfinite"]:
            raise Diverged(self.diverged(step))
        self.log.write(step, summary)
        bar.set_postfix(
            loss=f"{summary['loss']:.4f}", images_s=f"{summary['images_per_second']:.0f}"
        )

    def diverged(self, step: int) -> str:
        good = self.folder.checkpointer.latest_step()
        kept = (
            "There is no checkpoint yet."
            if good is None
            else f"The last good checkpoint is of step {good} in "
            f"{self.folder.checkpointer.directory}, and the same command resumes from it."
        )
        return (
            f"the loss became NaN or infinite by step {step}. {kept} Try a lower --learning-rate, "
            "a longer --warmup, a smaller --grad-clip or --compute-dtype float32 (these start a "
            "new run: --run-dir)."
        )

    def pause(self, work, *args) -> None:
        """Does something that is not training, without counting its time as such."""
        began = time.monotonic()
        work(*args)
        self.since += time.monotonic() - began

    def picture(self, state, step: int) -> None:
        denoiser = make_denoiser(state.ema_net(), make_schedule(self.config), self.config)
        num_classes = self.data.num_classes if self.config.model.class_conditional else None
        key = jax.random.key(self.config.training.seed + 1)
        num = 40 if num_classes == 10 else 36
        samples = _score.draw(
            denoiser,
            self.data.shape,
            num,
            steps=min(50, self.config.diffusion.num_timesteps),
            num_classes=num_classes,
            key=key,
            progress=False,
        )
        path = self.folder.folder / "samples" / f"step_{step:08d}.png"
        columns = 10 if num_classes == 10 else None
        if np.all(np.isfinite(samples)):
            eqd.data.write_grid(path, samples, levels=self.data.levels, columns=columns)

    def checkpoint(self, state, batches, step: int) -> None:
        extra = {"batches": batches.get_state(), "seconds": self.extra}
        self.folder.checkpointer.save(step, state, extra)
        denoiser = make_denoiser(state.ema_net(), make_schedule(self.config), self.config)
        eqd.save_model(self.folder.model, denoiser, overwrite=True)


def describe(config: Config, data: Dataset, net: eqd.nn.UNet) -> None:
    """What is about to be trained, in two lines."""
    size = "x".join(map(str, data.shape))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(
        f"{data.name}: {len(data.train)} training images of {size}, {data.levels} grey levels, on "
        f"{device}."
    )
    model, training, diffusion = config.model, config.training, config.diffusion
    print(
        f"U-Net of {count_parameters(net) / 1e6:.2f} M parameters ({model.compute_dtype}), "
        f"{diffusion.num_timesteps} {diffusion.schedule} steps, L_{diffusion.loss}; "
        f"{training.steps} steps of {training.batch_size} images into {config.output.run_dir}."
    )


if __name__ == "__main__":
    try:
        main()
    except EXPECTED as error:
        fail(error)
