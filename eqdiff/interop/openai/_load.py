r"""Files of improved-diffusion and guided-diffusion, as denoisers.

What the scripts' flags are called here:

- `noise_schedule`, `diffusion_steps`: [`eqdiff.linear_schedule`][] or [`eqdiff.cosine_schedule`][];
  `timestep_respacing`: [`eqdiff.respace`][] of it;
- `rescale_timesteps`: the schedule's `c_noise`, $1000\,t/T$ with it and $t$ without;
- `predict_xstart`: [`eqdiff.PredictData`][] instead of [`eqdiff.PredictNoise`][];
- `learn_sigma`: [`eqdiff.LearnedRange`][]; without it `sigma_small` is [`eqdiff.FixedSmall`][] and
  the default [`eqdiff.FixedLarge`][].

Whatever the weights say by themselves is read off them; a flag that contradicts them is an error,
since it would mean that the flags belong to another file.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._denoiser import Denoiser
from ..._guidance import Classifier
from ..._parameterisation import PredictData, PredictNoise
from ..._process import cosine_schedule, linear_schedule, respace, Schedule
from ..._shown import shown
from ..._variance import AbstractVariance, FixedLarge, FixedSmall, LearnedRange
from ...nn._super_resolution import SuperResolution
from .._reading import reading
from ..files import Given, given_state_dict, name_of
from ._flags import (
    CLASSIFIER,
    CLASSIFIER_PRESETS,
    GUIDED,
    GUIDED_PRESETS,
    IMPROVED,
    IMPROVED_PRESETS,
    numbers,
    read_flags,
)
from ._network import openai_classifier, openai_unet
from ._spacing import kept_steps
from ._structure import Structure, unet_structure


# What one name of every network begins with, whatever stands in front.
_STARTS = ("input_blocks.0.0.weight",)
# The levels' widths by the side of the image, which the scripts use without `channel_mult`.
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
        schedule = Schedule(schedule.betas, c_noise=np.arange(steps))
    spacing = flags["timestep_respacing"]
    return respace(schedule, kept_steps(steps, spacing)) if spacing else schedule


def _variance(flags: Mapping[str, Any]) -> AbstractVariance:
    if flags["learn_sigma"]:
        return LearnedRange()
    return FixedSmall() if flags["sigma_small"] else FixedLarge()


def _contradictions(flags: Mapping[str, Any], given: frozenset[str], found: Structure) -> list[str]:
    """What the given flags say and the weights do not."""
    upsampler = _is_upsampler(given)
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
    if sized in given:
        # Resolutions are factors only where the side is known; the scripts choose widths by it.
        table = _UPSAMPLER_MULTS if upsampler else _MULTS
        usual = table.get(flags[sized])
        if usual is not None and not mults:
            expected[sized] = usual, found.channel_mult
        sides = numbers(flags["attention_resolutions"], "attention_resolutions")
        factors = sorted(int(flags[sized] // side) for side in sides if side > 0)
        reached = tuple(f for f in factors if 0 < f < 2 ** len(found.channel_mult))
        expected["attention_resolutions"] = (reached, found.attention_factors)
    problems = []
    for flag, (wanted, actual) in expected.items():
        if flag in given and wanted != actual:
            value = flags[flag]
            meaning = "" if value == wanted else f" (that is {wanted})"
            problems.append(f"{flag}={value!r}{meaning}, but the weights have {actual}")
            if flag == sized:
                widths = ",".join(map(str, found.channel_mult))
                problems[-1] += f" (of a script with these widths, say channel_mult={widths!r})"
    return problems


def _is_upsampler(given: frozenset[str]) -> bool:
    return not given.isdisjoint(("large_size", "small_size"))


def _channels(upsampler: bool, found: Structure) -> int:
    # An upsampler sees two images.
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
            num_head_channels=flags["num_head_channels"],
            resblock_updown=found.resblock_updown,
            # The scripts for upsamplers have no such flag.
            use_new_attention_order=flags["use_new_attention_order"] and not upsampler,
        )
    return config


def _denoiser(
    weights: Given,
    flags: Mapping[str, Any] | None,
    preset: str | None,
    compute_dtype: Any,
    defaults: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
) -> Denoiser:
    source = name_of(weights)
    with reading(source):
        values, given = read_flags(flags, preset, defaults, presets, source)
        state = given_state_dict(weights, _STARTS)
        found, upsampler = unet_structure(state, source), _is_upsampler(given)
        problems = _contradictions(values, given, found)
        if problems:
            raise ValueError(
                f"{source}: the flags are not those of these weights: {'; '.join(problems)}."
            )
        channels = _channels(upsampler, found)
        if "learn_sigma" not in given:
            values = {**values, "learn_sigma": found.out_channels == 2 * channels}
        if found.out_channels not in (channels, 2 * channels):
            raise ValueError(
                f"{source} takes {found.in_channels} channels and returns {found.out_channels}. "
                "For an upsampler, whose network sees a second image, say so with the flags "
                "large_size and small_size."
            )
        unet = openai_unet(state, _config(values, found, upsampler), compute_dtype=compute_dtype)
        net = SuperResolution(unet) if upsampler else unet
        parameterisation = PredictData() if values["predict_xstart"] else PredictNoise()
        return Denoiser(net, _schedule(values), parameterisation, variance=_variance(values))


def load_improved_diffusion(
    weights: Given,
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """Makes the denoiser that improved-diffusion's scripts make of weights and flags.

    Neither PyTorch nor the official code is needed, and nothing of a file is run.

    **Arguments:**

    - `weights`: the path of a `.pt`: published, or `ema_RATE_STEP.pt` or `modelSTEP.pt` of a run;
        or the state dict of a `UNetModel` or `SuperResModel` in memory, official names and arrays.
        Of a training state that holds it (`"state_dict"`, `"model"`, …) the moving average is read
        if it has one (`"ema"`, …), and a warning names what else holds weights; prefixes
        of `torch.compile`, data-parallel training and Lightning are taken off.
    - `flags`: as given to the scripts, without the dashes, such as
        `{"num_heads": 1, "noise_schedule": "cosine"}`; values may be text. Those left out have the
        scripts' defaults, or what the weights say (widths, levels, attention, classes, learned
        variance). A flag `small_size` or `large_size` makes an upsampler. Networks with other
        widths than the script chooses by `image_size` say `channel_mult`, improved-diffusion's too,
        whose scripts do not have it. `timestep_respacing` keeps the official steps: of a section
        with a count of one the first, where [`eqdiff.section_timesteps`][] has the last. The flags
        of training, sampling (`clip_denoised`, …) and of a classifier change no denoiser:
        they are accepted and ignored.
    - `preset`: the name of a published file, whose flags are used, except for those in `flags`. A
        file with the name of a published one needs neither.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Denoiser`][] on a schedule, of an [`eqdiff.nn.UNet`][] or
    [`eqdiff.nn.SuperResolution`][]; data in [−1, 1].

    **Raises:** `ValueError` for unknown flags, flags that contradict the weights, and weights that
    do not fit, by name; for a file, those of [`eqdiff.interop.read_torch`][] too.

    **Example:**

    ```python
    denoiser = eqd.interop.load_improved_diffusion("cifar10_uncond_50M_500K.pt")
    flags = {"image_size": 64, "noise_schedule": "cosine"}
    mine = eqd.interop.load_improved_diffusion("ema_0.9999_200000.pt", flags)
    ```
    """
    return _denoiser(weights, flags, preset, compute_dtype, IMPROVED, IMPROVED_PRESETS)


def load_guided_diffusion(
    weights: Given,
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Denoiser:
    """The denoiser that guided-diffusion's scripts make of weights and flags.

    **Arguments:** those of [`eqdiff.interop.load_improved_diffusion`][], with guided-diffusion's
    flags and defaults (its `c_noise`, for one, is not rescaled), for its diffusion models and
    upsamplers.

    **Returns:** an [`eqdiff.Denoiser`][] on a schedule, of an [`eqdiff.nn.UNet`][] or
    [`eqdiff.nn.SuperResolution`][]; data in [−1, 1].

    **Raises:** as [`eqdiff.interop.load_improved_diffusion`][].

    **Example:**

    ```python
    denoiser = eqd.interop.load_guided_diffusion("64x64_diffusion.pt")
    classifier = eqd.interop.load_guided_diffusion_classifier("64x64_classifier.pt")
    guided = eqd.ClassifierGuidance(eqd.Clip(denoiser), classifier, scale=1.0)
    ```
    """
    return _denoiser(weights, flags, preset, compute_dtype, GUIDED, GUIDED_PRESETS)


# The last layer of a classifier by its pooling, whose first axis are the classes.
_LAST = {
    "adaptive": "out.3",
    "attention": "out.2.c_proj",
    "spatial": "out.2",
    "spatial_v2": "out.3",
}


def load_guided_diffusion_classifier(
    weights: Given,
    flags: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    compute_dtype: Any = jnp.float32,
) -> Classifier:
    """The noisy classifier that guided-diffusion's scripts make of weights and flags.

    It is what [`eqdiff.ClassifierGuidance`][] and [`eqdiff.MeanShift`][] take.

    **Arguments:**

    - `weights`: the path of a `.pt`, or the state dict of an `EncoderUNetModel` in memory.
    - `flags`: those of the scripts that concern the classifier and the diffusion: `image_size`,
        `classifier_depth`, `classifier_pool`, `noise_schedule`, …
    - `preset`: the name of a published classifier, such as `"64x64_classifier"`; not needed where
        the file has it.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.Classifier`][] on the schedule of the denoiser that it guides.

    **Raises:** as [`eqdiff.interop.load_improved_diffusion`][].

    **Example:**

    ```python
    classifier = eqd.interop.load_guided_diffusion_classifier("64x64_classifier.pt")
    log_p = classifier(0, jnp.zeros((3, 64, 64)), 7)  # of class 7, at step 0
    ```
    """
    source = name_of(weights)
    with reading(source):
        values, given = read_flags(flags, preset, CLASSIFIER, CLASSIFIER_PRESETS, source)
        if "noised" in given and not values["noised"]:
            raise ValueError(
                "flag noised=False: this classifier was trained on images without noise, and a "
                "Classifier is of noisy ones."
            )
        state = given_state_dict(weights, _STARTS)
        net = openai_classifier(
            state, _classifier_config(values, state, source), compute_dtype=compute_dtype
        )
        return Classifier(net, _schedule(values))


def _classifier_config(
    flags: Mapping[str, Any], state: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Keyword arguments of the official constructor."""
    side, pool = flags["image_size"], flags["classifier_pool"]
    mults = numbers(flags["channel_mult"], "channel_mult") or _MULTS.get(side)
    if mults is None or (side == 32 and not flags["channel_mult"]):
        raise ValueError(
            f"flag image_size={side}: the classifiers' scripts know 64, 128, 256 and 512; for "
            "another side say the levels' widths, such as channel_mult='1,2,2'."
        )
    if pool not in _LAST:
        raise ValueError(f"flag classifier_pool={pool!r}: expected one of {sorted(_LAST)}.")
    last = f"{_LAST[pool]}.weight"
    if last not in state or "input_blocks.0.0.weight" not in state:
        raise ValueError(
            f"{source} does not hold the weights of a classifier with classifier_pool={pool!r}: "
            f"{last} is missing among {len(state)} names, of which the last are "
            f"{shown(list(state)[-4:], 200)}."
        )
    resolutions = numbers(
        flags["classifier_attention_resolutions"], "classifier_attention_resolutions"
    )
    return dict(
        image_size=side,
        in_channels=np.shape(state["input_blocks.0.0.weight"])[1],
        model_channels=flags["classifier_width"],
        out_channels=np.shape(state[last])[0],
        num_res_blocks=flags["classifier_depth"],
        attention_resolutions=tuple(side // int(r) for r in resolutions),
        channel_mult=mults,
        num_head_channels=64,
        use_scale_shift_norm=flags["classifier_use_scale_shift_norm"],
        resblock_updown=flags["classifier_resblock_updown"],
        pool=pool,
    )
