"""A real run: CIFAR-10 for so many seconds, then samples and bits/dim of held-out images."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np
from _programs import init_state, make_step, SETTINGS
from _suite_networks import Size
from _suite_records import Recorder

import eqdiff as eqd


SETTING = SETTINGS["iddpm_cifar10"]


class Images(NamedTuple):
    """uint8 images `(n, 3, 32, 32)`, and where they are from."""

    train: np.ndarray
    test: np.ndarray
    origin: str


def find_images(path: Path | None) -> Images:
    """CIFAR-10 from whatever is at `path`.

    A folder of the official binary files (or of some of their records, or the folder that holds
    it); an archive `.npz` of arrays `train` and `test` of uint8 images, channels first or last; or
    one of JPEG files laid end to end, as `train_jpeg` with `train_lengths`, and so for `test`.
    """
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"no CIFAR-10 at {path}: give its folder of binary files or an .npz with --data."
        )
    if path.is_dir():
        data = eqd.data.cifar10(path)
        train, test = (s.take(np.arange(len(s)))[0] for s in (data.train, data.test))
        return Images(train, test, "original pixels")
    archive = np.load(path)
    if "train_jpeg" in archive:
        train, test = (_decoded(archive, split) for split in ("train", "test"))
        return Images(train, test, "JPEG-decoded: bits/dim compare with nothing published")
    missing = {"train", "test"} - set(archive)
    if missing:
        raise ValueError(f"{path} has the arrays {sorted(archive)}, expected `train` and `test`.")
    train, test = (_channels_first(archive[split]) for split in ("train", "test"))
    return Images(train, test, "as in the archive")


def _decoded(archive: Any, split: str) -> np.ndarray:
    from PIL import Image

    lengths = archive[f"{split}_lengths"].astype(int)
    blob, end, images = archive[f"{split}_jpeg"].tobytes(), 0, []
    for length in lengths:
        image = Image.open(io.BytesIO(blob[end : end + length])).convert("RGB")
        images.append(np.asarray(image).transpose(2, 0, 1))
        end += length
    return np.stack(images)


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"expected uint8 images of four axes, got {images.dtype}{images.shape}.")
    return images if images.shape[1] == 3 else images.transpose(0, 3, 1, 2)


def shuffled(images: np.ndarray, batch: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Endless batches in [-1, 1], mirrored at random: no package for it need be installed."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, int)
    while True:
        while len(order) < batch:
            order = np.concatenate([order, rng.permutation(len(images))])
        chosen, order = order[:batch], order[batch:]
        found = images[chosen].astype(np.float32) / 127.5 - 1
        flip = rng.random(batch) < 0.5
        found[flip] = found[flip, ..., ::-1]
        yield found


def train(
    record: Recorder, size: Size, out: Path, images: Images, seconds: float
) -> eqd.train.TrainState:
    """Trains for so long, first step included, and writes the loss as it goes."""
    began = time.monotonic()
    # The program of `_suite_networks.py`, so that it need not be compiled again.
    state = eqx.filter_jit(lambda: init_state(SETTING, size.dtype, size.options))()
    step = make_step(SETTING)
    batch = size.batches[0]
    batches = shuffled(images.train, batch)
    pending, done, first, spoilt = [], 0, None, 0
    while time.monotonic() - began < seconds:
        state, metrics = step(state, (next(batches), None))
        pending.append(metrics)
        done += 1
        if first is None:
            jax.block_until_ready(metrics)
            first = time.monotonic() - began
        if len(pending) == 100:
            summary = eqd.train.summarise(pending)
            spoilt += int(summary["nonfinite"])
            pending.clear()
            line = {"step": done, "seconds": time.monotonic() - began, **summary}
            with (out / "loss.jsonl").open("a") as file:
                file.write(json.dumps(line, default=float) + "\n")
    jax.block_until_ready(state)
    total = time.monotonic() - began
    assert first is not None
    record(
        "training",
        kind="training",
        images=images.origin,
        steps=done,
        batch=batch,
        seconds=total,
        first_step_s=first,
        images_per_second=batch * (done - 1) / max(total - first, 1e-9),
        spoilt_steps=spoilt,
    )
    return state


def evaluate(
    record: Recorder,
    out: Path,
    images: Images,
    state: eqd.train.TrainState,
    *,
    num: int,
    terms: int,
) -> None:
    """A grid of samples, then the bound and the flow's likelihood of the same held-out images."""
    denoiser = SETTING.denoiser(state.ema_net())
    key = jax.random.key(2)
    start = time.monotonic()
    samples = eqd.generate(
        eqd.Ancestral(terms), eqd.Clip(denoiser), num, SETTING.shape, key=key, batch_size=num
    )
    eqd.data.write_grid(out / "samples.png", samples, columns=round(num**0.5))
    record("training", kind="quality", samples=num, seconds=time.monotonic() - start)
    chosen = np.random.default_rng(0).permutation(len(images.test))[: 2 * num]
    held_out = images.test[chosen].astype(np.float32) / 127.5 - 1
    clipped, dequantise = eqd.Clip(denoiser), eqd.GaussianDequantisation(256)
    flow = eqd.ProbabilityFlow(diffrax.Bosh3(), rtol=1e-3, atol=1e-3)

    def bound(x, key):
        return eqd.variational_bound(clipped, x, key=key, num_terms=terms).bits

    def likelihood(x, key):
        return eqd.bits_per_dim(denoiser, x, dequantise=dequantise, flow=flow, key=key).bits

    for name, bits in (("bound", bound), ("flow", likelihood)):
        start = time.monotonic()
        values = eqd.map_examples(bits, held_out, key=key, batch_size=len(held_out))
        found = {"bits_per_dim": float(np.mean(values)), "images": len(values)}
        found["standard_error"] = float(np.std(values) / len(values) ** 0.5)
        seconds = time.monotonic() - start
        record("training", kind="quality", measure=name, **found, seconds=seconds)
