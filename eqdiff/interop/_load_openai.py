r"""Files of improved-diffusion and guided-diffusion, as denoisers.

What the scripts' flags are called here:

- `noise_schedule`, `diffusion_steps`: [`eqdiff.linear_schedule`][] or [`eqdiff.cosine_schedule`][]; `timestep_respacing`:
  [`eqdiff.respace`][] of it;
- `rescale_timesteps`: the schedule's labels, $1000\,t/T$ with it and $t$ without;
- `predict_xstart`: [`eqdiff.PredictData`][] instead of [`eqdiff.PredictNoise`][];
- `learn_sigma`: [`eqdiff.LearnedRange`][]; without it `sigma_small` is [`eqdiff.FixedSmall`][] and the default
  [`eqdiff.FixedLarge`][].

What the weights tell by themselves is read off them; a flag that says otherwise is an error, since it would mean that the flags belong
to another file.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._denoiser import Denoiser
from .._guidance import Classifier
from .._parameterisation import PredictData, PredictNoise
from .._schedule import (
    cosine_schedule,
    ddim_timesteps,
    linear_schedule,
    respace,
    Schedule,
    section_timesteps,
)
from .._variance import AbstractVariance, FixedLarge, FixedSmall, LearnedRange
from ..nn._super_resolution import SuperResolution
from ..nn._unet import UNet
from ._guided_diffusion import guided_diffusion_classifier, guided_diffusion_unet
from ._improved_diffusion import improved_diffusion_unet
from ._openai_flags import (
    CLASSIFIER,
    CLASSIFIER_PRESETS,
    GUIDED,
    GUIDED_PRESETS,
    IMPROVED,
    IMPROVED_PRESETS,
    numbers,
    read_flags,
)
from ._openai_structure import Structure, unet_structure
from ._torch_file import read_torch, state_dict as check_state_dict
from ._weights import strip


# The widths of the levels by the side of the image, as the scripts have them where `channel_mult` is not given.
_MULTS: dict[int, tuple[int | float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
_UPSAMPLER_MULTS = {512: _MULTS[256], 256: _MULTS[256], 64: _MULTS[64]}


def _schedule(flags: Mapping[str, Any]) -> Schedule:
    kinds = {"linear": linear_schedule, "cosine": cosine_schedule}
    steps, kind = flags["diffusion_steps"], flags["noise_schedule"]
    if kind not in kinds:
        raise ValueError(f"flag noise_schedule={kind!r}: expected 'linear' or 'cosine'.")
    schedule = kinds[kind](steps)
    if not flags["rescale_timesteps"]:
        schedule = Schedule(schedule.betas, labels=np.arange(steps))
    spacing = flags["timestep_respacing"]
    if not spacing:
        return schedule
    if spacing.startswith("ddim"):
        return respace(schedule, ddim_timesteps(steps, int(spacing.removeprefix("ddim"))))
    counts = tuple(int(n) for n in numbers(spacing, "timestep_respacing"))
    return respace(schedule, section_timesteps(steps, counts))


def _variance(flags: Mapping[str, Any]) -> AbstractVariance:
    if flags["learn_sigma"]:
        return LearnedRange()
    return FixedSmall() if flags["sigma_small"] else FixedLarge()


def _contradictions(flags: Mapping[str, Any], said: frozenset[str], found: Structure) -> list[str]:
    """What the flags say and the weights do not."""
    upsampler = _is_upsampler(said)
    sized = "large_size" if upsampler else "image_size"
    expected: dict[str, tuple[Any, Any]] = {
        "num_channels": (flags["num_channels"], found.model_channels),
        "num_res_blocks": (flags["num_res_blocks"], found.num_res_blocks),
        "use_scale_shift_norm": (flags["use_scale_shift_norm"], found.use_scale_shift_norm),
        "resblock_updown": (flags.get("resblock_updown"), found.resblock_updown),
        "class_cond": (flags["class_cond"], found.num_classes is not None),
        "learn_sigma": (
            flags["learn_sigma"],
            found.out_channels == 2 * _channels(upsampler, found),
        ),
    }
    mults = numbers(flags.get("channel_mult", ""), "channel_mult")
    if mults:
        expected["channel_mult"] = (mults, found.channel_mult)
    if sized in said:
        # Resolutions mean factors only where the side is known, and the scripts choose widths by it.
        table = _UPSAMPLER_MULTS if upsampler else _MULTS
        expected.setdefault(sized, (mults or table.get(flags[sized]), found.channel_mult))
        sides = numbers(flags["attention_resolutions"], "attention_resolutions")
        factors = sorted(int(flags[sized] // side) for side in sides if side > 0)
        reached = tuple(f for f in factors if 0 < f < 2 ** len(found.channel_mult))
        expected["attention_resolutions"] = (reached, found.attention_factors)
    problems = []
    for flag, (given, actual) in expected.items():
        if flag in said and given != actual:
            value = flags[flag]
            meaning = "" if value == given else f" (that is {given})"
            problems.append(f"{flag}={value!r}{meaning}, but the weights have {actual}")
    return problems


def _is_upsampler(said: frozenset[str]) -> bool:
    return not said.isdisjoint(("large_size", "small_size"))


def _channels(upsampler: bool, found: Structure) -> int:
    # An upsampler is shown two images.
    return found.in_channels // 2 if upsampler else found.in_channels


def _config(flags: Mapping[str, Any], found: Structure, upsampler: bool) -> dict[str, Any]:
    """Keyword arguments of the official constructor."""
    config = dict(
        in_channels=found.in_channels,
        model_channels=found.model_channels,
        out_channels=found.out_channels,
        num_res_blocks=found.num_res_blocks,
        attention_resolutions=found.attention_factors,
        dropout=flags["dropout"],
        channel_mult=found.channel_mult,
        conv_resample=found.conv_resample,
        num_classes=found.num_classes,
        num_heads=flags["num_heads"],
        num_heads_upsample=flags["num_heads_upsample"],
        use_scale_shift_norm=found.use_scale_shift_norm,
    )
    if "num_head_channels" in flags:
        config |= dict(
            image_size=flags["large_size" if upsampler else "image_size"],
            num_head_channels=flags["num_head_channels"],
            resblock_updown=found.resblock_updown,
            # The scripts for upsamplers have no such flag.
            use_new_attention_order=flags["use_new_attention_order"] and not upsampler,
        )
    return config


def _denoiser(state_dict, flags, said, build, source, compute_dtype) -> Denoiser:
    state = strip(state_dict, "module.")
    found, upsampler = unet_structure(state, source), _is_upsampler(said)
    problems = _contradictions(flags, said, found)
    if problems:
        raise ValueError(
            f"{source}: the flags are not those of these weights: {'; '.join(problems)}."
        )
    channels = _channels(upsampler, found)
    if "learn_sigma" not in said:
        flags = {**flags, "learn_sigma": found.out_channels == 2 * channels}
    if found.out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"{source} takes {found.in_channels} channels and returns {found.out_channels}. For an upsampler, whose network sees "
            "a second image, say so with the flags large_size and small_size."
        )
    net: UNet | SuperResolution = build(
        state, _config(flags, found, upsampler), compute_dtype=compute_dtype
    )
    if upsampler:
        net = SuperResolution(net)
    parameterisation = PredictData() if flags["predict_xstart"] else PredictNoise()
    return Denoiser(net, _schedule(flags), parameterisation, variance=_variance(flags))


def improved_diffusion_denoiser(
    state_dict: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """The denoiser that improved-diffusion's scripts make of a state dict and flags.

    **Arguments:**

    - `state_dict`: official names and arrays of a `UNetModel` or `SuperResModel`.
    - `flags`: as given to the scripts, without the dashes: `{"num_heads": 1, "noise_schedule": "cosine"}`; values may be text. Those
        not given have the scripts' defaults, except where the weights tell (widths, levels, attention, classes, learned variance).
        Upsamplers are those with a flag `small_size` or `large_size`. Training's flags are accepted and ignored.
    - `preset`: the name of a published file, whose flags `flags` may change.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][] on a chain, of an [`eqdiff.nn.UNet`][] or [`eqdiff.nn.SuperResolution`][]; data in [−1, 1].

    **Raises:** `ValueError` for unknown flags, flags that contradict the weights, and weights that do not fit, all listed by name.
    """
    source = "the state dict"
    all_flags, said = read_flags(flags, preset, IMPROVED, IMPROVED_PRESETS, source)
    return _denoiser(state_dict, all_flags, said, improved_diffusion_unet, source, compute_dtype)


def load_improved_diffusion(
    path: str | os.PathLike,
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """Reads a `.pt` of improved-diffusion. Neither PyTorch nor the official code is needed, and nothing of the file is run.

    ```python
    denoiser = eqdiff.interop.load_improved_diffusion("cifar10_uncond_50M_500K.pt")
    mine = eqdiff.interop.load_improved_diffusion("ema_0.9999_200000.pt", {"image_size": 64, "noise_schedule": "cosine"})
    ```

    **Arguments:**

    - `path`: the file: published, or `ema_RATE_STEP.pt` or `modelSTEP.pt` of a run.
    - `flags`, `preset`, `compute_dtype`: as for [`eqdiff.interop.improved_diffusion_denoiser`][]. A file with the name of a
        published one needs neither flags nor preset.

    **Returns:** an [`eqdiff.Denoiser`][], as there.

    **Raises:** `FileNotFoundError`; `ValueError` as there and as [`eqdiff.interop.read_torch`][].
    """
    source = str(path)
    all_flags, said = read_flags(flags, preset, IMPROVED, IMPROVED_PRESETS, source)
    state = check_state_dict(read_torch(path), source)
    return _denoiser(state, all_flags, said, improved_diffusion_unet, source, compute_dtype)


def guided_diffusion_denoiser(
    state_dict: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """The denoiser that guided-diffusion's scripts make of a state dict and flags.

    **Arguments:** as for [`eqdiff.interop.improved_diffusion_denoiser`][], with guided-diffusion's flags and defaults (time labels,
    for one, are not rescaled).

    **Returns:** an [`eqdiff.Denoiser`][], as there.

    **Raises:** as there.
    """
    source = "the state dict"
    all_flags, said = read_flags(flags, preset, GUIDED, GUIDED_PRESETS, source)
    return _denoiser(state_dict, all_flags, said, guided_diffusion_unet, source, compute_dtype)


def load_guided_diffusion(
    path: str | os.PathLike,
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """Reads a `.pt` of guided-diffusion's diffusion models and upsamplers.

    ```python
    denoiser = eqdiff.interop.load_guided_diffusion("64x64_diffusion.pt")
    classifier = eqdiff.interop.load_guided_diffusion_classifier("64x64_classifier.pt")
    guided = eqdiff.ClassifierGuidance(eqdiff.Clip(denoiser), classifier, scale=1.0)
    ```

    **Arguments:**

    - `path`: the file.
    - `flags`, `preset`, `compute_dtype`: as for [`eqdiff.interop.guided_diffusion_denoiser`][]. A file with the name of a published
        one needs neither flags nor preset.

    **Returns:** an [`eqdiff.Denoiser`][], as there.

    **Raises:** `FileNotFoundError`; `ValueError` as there and as [`eqdiff.interop.read_torch`][].
    """
    source = str(path)
    all_flags, said = read_flags(flags, preset, GUIDED, GUIDED_PRESETS, source)
    state = check_state_dict(read_torch(path), source)
    return _denoiser(state, all_flags, said, guided_diffusion_unet, source, compute_dtype)


def load_guided_diffusion_classifier(
    path: str | os.PathLike,
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Classifier:
    """Reads a `.pt` of guided-diffusion's noisy classifiers: what [`eqdiff.ClassifierGuidance`][] takes.

    **Arguments:**

    - `path`: the file.
    - `flags`: those of the scripts that concern the classifier and the diffusion: `image_size`, `classifier_depth`,
        `classifier_pool`, `noise_schedule`, …
    - `preset`: the name of a published classifier, such as `"64x64_classifier"`; not needed where the file has it.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Classifier`][] on the chain of the denoiser that it guides.

    **Raises:** as [`eqdiff.interop.load_guided_diffusion`][].
    """
    source = str(path)
    all_flags, _ = read_flags(flags, preset, CLASSIFIER, CLASSIFIER_PRESETS, source)
    state = check_state_dict(read_torch(path), source)
    return _classifier(state, all_flags, compute_dtype, source)


def guided_diffusion_noisy_classifier(
    state_dict: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Classifier:
    """The classifier that guided-diffusion's scripts make of a state dict and flags.

    **Arguments:** as for [`eqdiff.interop.load_guided_diffusion_classifier`][], with names and arrays instead of a file.

    **Returns:** an [`eqdiff.Classifier`][].

    **Raises:** as there.
    """
    all_flags, _ = read_flags(flags, preset, CLASSIFIER, CLASSIFIER_PRESETS, "the state dict")
    return _classifier(state_dict, all_flags, compute_dtype, "the state dict")


# The last layer of a classifier by its pooling, whose first axis are the classes.
_LAST = {
    "adaptive": "out.3",
    "attention": "out.2.c_proj",
    "spatial": "out.2",
    "spatial_v2": "out.3",
}


def _classifier(state_dict, flags, compute_dtype, source) -> Classifier:
    side, pool = flags["image_size"], flags["classifier_pool"]
    if side not in _MULTS or side == 32:
        raise ValueError(
            f"flag image_size={side}: the classifiers' scripts know 64, 128, 256 and 512."
        )
    if pool not in _LAST:
        raise ValueError(f"flag classifier_pool={pool!r}: expected one of {sorted(_LAST)}.")
    state = strip(state_dict, "module.")
    last = f"{_LAST[pool]}.weight"
    if last not in state or "input_blocks.0.0.weight" not in state:
        raise ValueError(
            f"{source} does not hold the weights of a classifier with classifier_pool={pool!r}: {last} is missing among "
            f"{len(state)} names, of which the last are {list(state)[-4:]}."
        )
    resolutions = numbers(
        flags["classifier_attention_resolutions"], "classifier_attention_resolutions"
    )
    config = dict(
        image_size=side,
        in_channels=np.shape(state["input_blocks.0.0.weight"])[1],
        model_channels=flags["classifier_width"],
        out_channels=np.shape(state[last])[0],
        num_res_blocks=flags["classifier_depth"],
        attention_resolutions=tuple(side // int(r) for r in resolutions),
        channel_mult=_MULTS[side],
        num_head_channels=64,
        use_scale_shift_norm=flags["classifier_use_scale_shift_norm"],
        resblock_updown=flags["classifier_resblock_updown"],
        pool=pool,
    )
    net = guided_diffusion_classifier(state, config, compute_dtype=compute_dtype)
    return Classifier(net, _schedule(flags))
