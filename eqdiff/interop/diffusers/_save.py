"""Denoisers as folders of diffusers: what `_load.py` and `_network.py` read, written back."""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..._denoiser import AbstractDenoiser, Denoiser
from ..._guidance import ClipDataAlone
from ..._padding import ZeroPadding
from ..._parameterisation import PredictData, PredictNoise, PredictVelocity
from ..._process import Schedule
from ..._serialise.write import write_safetensors
from ..._shown import shown
from ..._variance import FixedLarge, FixedSmall, LearnedRange
from ...nn._embedding import ClassTable
from ...nn._ends import Centred
from ...nn._heads import EveryBlock, HeadsOf
from ...nn._resampling import Strided
from ...nn._style import ScaleShift
from ...nn._time_features import Sinusoids, SongSinusoids
from ...nn._unet import UNet
from .._weights import official
from . import _folder
from ._entries import entries
from ._scheduler import betas


_WEIGHTS = f"{_folder.WEIGHTS}.safetensors"
_FILES = (_folder.CONFIG, _WEIGHTS, _folder.SCHEDULER, _folder.INDEX)
_PREDICTIONS = {PredictNoise: "epsilon", PredictData: "sample", PredictVelocity: "v_prediction"}
_VARIANCES = {FixedSmall: "fixed_small", FixedLarge: "fixed_large", LearnedRange: "learned_range"}


class _Problems(list[str]):
    def unless(self, fine: bool, problem: str) -> None:
        if not fine:
            self.append(problem)


def save_diffusers(
    folder: str | os.PathLike,
    denoiser: AbstractDenoiser,
    *,
    sample_size: int | Sequence[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a denoiser as a folder that diffusers reads.

    and with diffusers `DDPMPipeline.from_pretrained("mine")`, or its `UNet2DModel` and its
    `DDPMScheduler` alone, likewise. The folder holds `config.json`, `scheduler_config.json`,
    `diffusion_pytorch_model.safetensors` and `model_index.json`; it appears whole or not at all.

    **Arguments:**

    - `folder`: the folder, which is made; `~` is your home.
    - `denoiser`: an [`eqdiff.Denoiser`][] of an [`eqdiff.nn.UNet`][] on a schedule whose `c_noise`
        are the steps. In an [`eqdiff.ClipDataAlone`][] the scheduler has `clip_sample`, without one
        it has not.
    - `sample_size`: the side of the images, or both; diffusers' pipelines need it.
    - `overwrite`: whether a folder that is there may be replaced, if it holds these files alone.

    **Raises:** `ValueError` that names every choice that a `UNet2DModel` or a `DDPMScheduler` does
    not have; `FileExistsError` for a folder that is there and `overwrite=False`, or that holds
    other files; `OSError` where it cannot be written.

    **Example:**

    ```python
    denoiser = eqd.load_model("model.safetensors")
    eqd.interop.save_diffusers("mine", eqd.ClipDataAlone(denoiser), sample_size=32)
    ```
    """
    folder = Path(folder).expanduser()
    _check_free(folder, overwrite)
    clipped = denoiser if isinstance(denoiser, ClipDataAlone) else None
    inner = denoiser if clipped is None else clipped.denoiser
    if not isinstance(inner, Denoiser):
        raise ValueError(
            "save_diffusers: expected an eqdiff.Denoiser, or one in an eqdiff.ClipDataAlone, got a "
            f"{type(inner).__name__}. Save the denoiser that it wraps."
        )
    problems = _Problems()
    config = network_config(inner.net, problems)
    scheduler = scheduler_config(inner, clipped, problems)
    if problems:
        raise ValueError(
            "save_diffusers: diffusers cannot express this denoiser: " + "; ".join(problems) + "."
        )
    net: Any = inner.net.net if isinstance(inner.net, Centred) else inner.net
    weights = official(net, entries(net))
    size = sum(a.size for a in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    if size != sum(array.size for array in weights.values()):
        raise ValueError("save_diffusers: the network has weights that no UNet2DModel has.")
    _write(folder, config | dict(sample_size=_size(sample_size)), scheduler, weights)


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} exists, and is not a folder.")
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if name not in _FILES]
    if others:
        raise FileExistsError(
            f"{folder} exists and holds {shown(others)}, which save_diffusers did not write. Give "
            "a folder that is not there."
        )
    if names and not overwrite:
        raise FileExistsError(f"{folder} exists; write overwrite=True to replace it.")


def _size(sample_size: Any) -> Any:
    if sample_size is None or isinstance(sample_size, int):
        return sample_size
    return [int(side) for side in sample_size]


def network_config(net: Any, problems: _Problems) -> dict[str, Any]:
    """`config.json` of a network; what it cannot say is added to `problems`."""
    centred = isinstance(net, Centred)
    net = net.net if centred else net
    if not isinstance(net, UNet):
        problems.append(f"its network is a {type(net).__name__}, and a UNet2DModel is a UNet")
        return {}
    shape, style, embed = net.shape, net.style, net.embed
    problems.unless(shape.dims == 2, f"dims={shape.dims}, expected 2")
    problems.unless(shape.augment_size == 0, f"augment_size={shape.augment_size}, expected 0")
    problems.unless(
        net.conditions is None,
        "conditions, expected None: the one that a UNet2DModel has is a class, num_classes of the "
        "shape",
    )
    widths = shape.widths
    problems.unless(
        shape.stem == widths[0] == shape.channels,
        f"{shape.channels} channels, {shape.stem} after the first convolution and {widths[0]} in "
        "the first level, expected one number",
    )
    downs = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in shape.attention]
    scale_shift = isinstance(style.modulation, ScaleShift)
    return dict(
        _class_name="UNet2DModel",
        in_channels=shape.in_channels,
        out_channels=shape.out_channels,
        center_input_sample=centred,
        block_out_channels=list(widths),
        layers_per_block=shape.num_res_blocks,
        down_block_types=downs,
        up_block_types=[block.replace("Down", "Up") for block in reversed(downs)],
        num_class_embeds=shape.num_classes,
        dropout=style.dropout,
        norm_num_groups=style.norm.groups,
        norm_eps=style.norm.eps,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        # Without it the attention in the middle would not be normalised.
        attn_norm_num_groups=style.norm.groups if scale_shift else None,
        attention_head_dim=_head_size(net, problems),
        **_style_options(style, any(shape.attention), problems),
        **_time_options(embed, widths[0], problems),
    )


def _style_options(style: Any, attends: bool, problems: _Problems) -> dict[str, Any]:
    padding = style.resampling.padding if isinstance(style.resampling, Strided) else None
    problems.unless(
        padding in ((0, 1), (1, 1)), f"resampling={style.resampling}, expected Strided()"
    )
    problems.unless(style.norm.min_channels == 0, f"norm={style.norm}, expected min_channels=0")
    zeros = isinstance(style.padding, ZeroPadding)
    problems.unless(zeros, f"padding={style.padding}, expected ZeroPadding()")
    problems.unless(style.scale == 1, f"scale={style.scale:g}, expected 1")
    for name in ("input_pyramid", "output_pyramid"):
        value = getattr(style, name)
        problems.unless(value is None, f"{name}={value}, expected None")
    problems.unless(
        not attends or isinstance(style.attention_up, EveryBlock),
        f"attention_up={style.attention_up}, expected EveryBlock()",
    )
    return dict(downsample_padding=0 if padding == (0, 1) else 1)


def _time_options(embed: Any, width: int, problems: _Problems) -> dict[str, Any]:
    if embed is None:
        problems.append("no embedding of the time, expected Sinusoids() or SongSinusoids()")
        return {}
    time, conditions = embed.time, embed.conditions
    known = isinstance(time, Sinusoids | SongSinusoids) and time.mult == 1
    problems.unless(known, f"time={time}, expected Sinusoids() or SongSinusoids()")
    table = isinstance(conditions, ClassTable)
    problems.unless(table, f"conditions={conditions}, expected ClassTable()")
    song = isinstance(time, SongSinusoids)
    return dict(
        flip_sin_to_cos=not song,
        freq_shift=int(song),
        time_embedding_dim=None if embed.mult == 4 else embed.mult * width,
    )


def _head_size(net: UNet, problems: _Problems) -> int | None:
    """The channels of a head, the same everywhere; `None` for one head of any size."""
    if isinstance(net.style.heads, HeadsOf):
        return net.style.heads.channels
    levels = (*net.body.encoder, net.body.middle, *net.body.decoder)
    attentions = [a for level in levels for a in level.attentions if a is not None]
    if all(attention.num_heads == 1 for attention in attentions):
        return None
    sizes = {attention.norm.weight.size // attention.num_heads for attention in attentions}
    problems.unless(
        len(sizes) == 1,
        f"attention with heads of {' and '.join(map(str, sorted(sizes)))} channels, expected heads "
        "of one size",
    )
    return min(sizes)


def scheduler_config(
    denoiser: Denoiser, clipped: ClipDataAlone | None, problems: _Problems
) -> dict[str, Any]:
    """`scheduler_config.json` of a denoiser; what it cannot say is added to `problems`."""
    schedule, kinds = denoiser.process, (denoiser.parameterisation, denoiser.variance)
    prediction, variance = _PREDICTIONS.get(type(kinds[0])), _VARIANCES.get(type(kinds[1]))
    problems.unless(
        prediction is not None,
        f"parameterisation={type(kinds[0]).__name__}, expected one of "
        f"{', '.join(kind.__name__ for kind in _PREDICTIONS)}",
    )
    problems.unless(
        variance is not None,
        f"variance={type(kinds[1]).__name__}, expected one of "
        f"{', '.join(kind.__name__ for kind in _VARIANCES)}",
    )
    problems.unless(denoiser.c_noise is None, "its own c_noise, expected the schedule's steps")
    if not isinstance(schedule, Schedule):
        problems.append(
            f"its process is a {type(schedule).__name__}, expected a Schedule; of a VP process it "
            "is eqdiff.discretise(process, 1000)"
        )
        return {}
    steps = np.arange(schedule.num_steps)
    problems.unless(
        np.array_equal(schedule.c_noises, steps) and np.array_equal(schedule.timesteps, steps),
        "the time input of its network is not the number of the step, as in "
        "Schedule(betas, c_noise=np.arange(T))",
    )
    if clipped is not None:
        problems.unless(
            clipped.low == -clipped.high,
            f"ClipDataAlone(low={clipped.low}, high={clipped.high}), expected low=-high",
        )
    return dict(
        _class_name="DDPMScheduler",
        **_rates(schedule.betas),
        num_train_timesteps=schedule.num_steps,
        prediction_type=prediction,
        variance_type=variance,
        clip_sample=clipped is not None,
        clip_sample_range=1.0 if clipped is None else float(clipped.high),
    )


def _rates(rates: np.ndarray) -> dict[str, Any]:
    """The words for rates, or the rates themselves."""
    # An end of a linear schedule may be rounded.
    low, high = (float(f"{rate:.12g}") for rate in rates[[0, -1]])
    ends = dict(beta_start=low, beta_end=high, trained_betas=None)
    sizes = dict(num_train_timesteps=rates.size)
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        latent = dict(ends, beta_start=1e-4, beta_end=0.02) if kind.startswith("sq") else ends
        if np.array_equal(betas(dict(latent, beta_schedule=kind) | sizes), rates):
            return dict(latent, beta_schedule=kind)
    return dict(trained_betas=[float(rate) for rate in rates])


def _write(
    folder: Path, config: dict[str, Any], scheduler: dict[str, Any], weights: dict[str, np.ndarray]
) -> None:
    index = dict(
        _class_name="DDPMPipeline",
        scheduler=["diffusers", "DDPMScheduler"],
        unet=["diffusers", "UNet2DModel"],
    )
    texts = {_folder.CONFIG: config, _folder.SCHEDULER: scheduler, _folder.INDEX: index}
    # Which framework's names these are: diffusers asks.
    metadata = {"format": "pt", "eqdiff_version": version("eqdiff")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    word = f"{os.getpid()}-{uuid.uuid4().hex}"
    temporary = folder.with_name(f".{folder.name}.{word}.tmp")
    try:
        temporary.mkdir()
        for name, value in texts.items():
            (temporary / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        write_safetensors(temporary / _WEIGHTS, weights, metadata)
        _replace(temporary, folder, folder.with_name(f".{folder.name}.{word}.old"))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, folder: Path, aside: Path) -> None:
    """Renames `new` to `folder`; what was there stays if that is not possible."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
