"""The flags of OpenAI's scripts, and those of their published files.

Both projects build a model and a diffusion from one list of flags, which their files do not record:
a file is useless without the flags that it was trained with. They are given here in the words of
the scripts (`script_util.py`); those that the READMEs publish are found by the name of the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


_DIFFUSION = dict(
    learn_sigma=False,
    diffusion_steps=1000,
    noise_schedule="linear",
    timestep_respacing="",
    use_kl=False,
    predict_xstart=False,
    rescale_timesteps=False,
    rescale_learned_sigmas=False,
)
_MODEL = dict(
    image_size=64,
    num_channels=128,
    num_res_blocks=2,
    num_heads=4,
    num_heads_upsample=-1,
    attention_resolutions="16,8",
    dropout=0.0,
    class_cond=False,
    use_checkpoint=False,
    use_scale_shift_norm=True,
)
_UPSAMPLER = dict(large_size=256, small_size=64)
_ADM = dict(
    num_head_channels=-1,
    channel_mult="",
    resblock_updown=False,
    use_fp16=False,
    use_new_attention_order=False,
)

# The defaults of the scripts; the last two differ between the projects.
IMPROVED = (
    _MODEL
    | _DIFFUSION
    | dict(sigma_small=False, rescale_timesteps=True, rescale_learned_sigmas=True)
)
# `sigma_small` is an argument of guided-diffusion's functions, not of its scripts.
GUIDED = _MODEL | _ADM | _DIFFUSION | dict(sigma_small=False)
# Only a script that was changed has this.
IMPROVED |= dict(channel_mult="")
CLASSIFIER = _DIFFUSION | dict(
    image_size=64,
    classifier_use_fp16=False,
    classifier_width=128,
    classifier_depth=2,
    classifier_attention_resolutions="32,16,8",
    classifier_use_scale_shift_norm=True,
    classifier_resblock_updown=True,
    classifier_pool="attention",
    channel_mult="",
    noised=True,
)

# Those of training, sampling and evaluation, which change neither a network nor its diffusion.
_ELSEWHERE = frozenset(
    (
        *"data_dir schedule_sampler lr weight_decay lr_anneal_steps batch_size microbatch".split(),
        *"ema_rate log_interval save_interval resume_checkpoint use_fp16 fp16_scale_growth".split(),
        *"clip_denoised num_samples use_ddim model_path base_samples".split(),
        *"classifier_path classifier_scale iterations anneal_lr val_data_dir eval_interval".split(),
    )
)
_UNSCALED = dict(rescale_learned_sigmas=False, rescale_timesteps=False)
_IMAGENET64 = dict(
    image_size=64,
    num_channels=128,
    num_res_blocks=3,
    learn_sigma=True,
    diffusion_steps=4000,
    noise_schedule="cosine",
)
_CIFAR10 = _IMAGENET64 | dict(image_size=32, dropout=0.3)
_LSUN = _UNSCALED | dict(
    image_size=256,
    num_channels=128,
    num_res_blocks=2,
    num_heads=1,
    learn_sigma=True,
    use_scale_shift_norm=False,
    attention_resolutions="16",
    diffusion_steps=1000,
    noise_schedule="linear",
)
IMPROVED_PRESETS: dict[str, dict[str, Any]] = {
    "imagenet64_uncond_100M_1500K": _IMAGENET64,
    "cifar10_uncond_50M_500K": _CIFAR10,
    "imagenet64_cond_270M_250K": _IMAGENET64 | _UNSCALED | dict(num_channels=192, class_cond=True),
    "upsample_cond_500K": _UPSAMPLER
    | _UNSCALED
    | dict(num_channels=192, num_res_blocks=2, learn_sigma=True, class_cond=True)
    | dict(diffusion_steps=4000, noise_schedule="linear"),
    "lsun_uncond_100M_1200K_bs128": _LSUN,
    "lsun_uncond_100M_2400K_bs64": _LSUN,
    "imagenet64_uncond_vlb_100M_1500K": _IMAGENET64 | dict(use_kl=True),
    "cifar10_uncond_vlb_50M_500K": _CIFAR10 | dict(use_kl=True),
}

_256 = dict(
    image_size=256,
    attention_resolutions="32,16,8",
    class_cond=True,
    diffusion_steps=1000,
    learn_sigma=True,
    noise_schedule="linear",
    num_channels=256,
    num_head_channels=64,
    num_res_blocks=2,
    resblock_updown=True,
    use_scale_shift_norm=True,
)
_64 = dict(
    image_size=64,
    dropout=0.1,
    noise_schedule="cosine",
    num_channels=192,
    num_res_blocks=3,
    use_new_attention_order=True,
)
_LSUN256 = _256 | dict(class_cond=False, dropout=0.1)
_UP = {k: v for k, v in _256.items() if k not in ("image_size", "num_head_channels")}
GUIDED_PRESETS: dict[str, dict[str, Any]] = {
    "64x64_diffusion": _256 | _64,
    "128x128_diffusion": {k: v for k, v in _256.items() if k != "num_head_channels"}
    | dict(image_size=128, num_heads=4),
    "256x256_diffusion": _256,
    "256x256_diffusion_uncond": _256 | dict(class_cond=False),
    "512x512_diffusion": _256 | dict(image_size=512),
    "64_256_upsampler": _UP | dict(large_size=256, small_size=64, num_channels=192, num_heads=4),
    "128_512_upsampler": _UP
    | dict(large_size=512, small_size=128, num_channels=192, num_head_channels=64)
    | dict(attention_resolutions="32,16"),
    "lsun_bedroom": _LSUN256,
    "lsun_cat": _LSUN256,
    "lsun_horse": _LSUN256,
    "lsun_horse_nodropout": _LSUN256 | dict(dropout=0.0),
}
# The README samples with these and the flags of the model, which say the classifier's size and
# diffusion.
CLASSIFIER_PRESETS: dict[str, dict[str, Any]] = {
    "64x64_classifier": dict(image_size=64, classifier_depth=4, noise_schedule="cosine"),
    "128x128_classifier": dict(image_size=128),
    "256x256_classifier": dict(image_size=256),
    "512x512_classifier": dict(image_size=512),
}


def read_flags(
    flags: Mapping[str, Any] | None,
    preset: str | None,
    defaults: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
    source: str,
) -> tuple[dict[str, Any], frozenset[str]]:
    """All flags, and which of them were given: by the caller, or by the published file's name.

    **Raises:** `ValueError` for a flag or a preset that does not exist, a value of another kind,
    and where nothing says with which flags the file was trained.
    """
    if preset is not None and preset not in presets:
        raise ValueError(f"no published file is called {preset!r}; known are {sorted(presets)}.")
    if preset is None and flags is None:
        preset = Path(source).stem
    if flags is None and preset not in presets:
        raise ValueError(
            f"{source} is none of the published files ({', '.join(sorted(presets))}), and weights "
            "alone do not say how they were trained. Write the flags of the script that trained "
            "them, flags={'noise_schedule': 'cosine', ...}, with flags={} for its defaults; or the "
            "name of a published file, preset=..."
        )
    given = {**presets.get(preset or "", {}), **(flags or {})}
    known = {**defaults, **_UPSAMPLER}
    # A script that samples with a classifier takes the flags of both networks.
    others = _ELSEWHERE | {*_MODEL, *_ADM} if defaults is CLASSIFIER else _ELSEWHERE | {*CLASSIFIER}
    given = {k: v for k, v in given.items() if k in known or k not in others}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"unknown flags {unknown}; the script's are {sorted(known)}.")
    values = {k: _value(k, v, known[k]) for k, v in given.items()}
    return {**defaults, **values}, frozenset(values)


_KINDS: dict[type, str] = {bool: "True or False", int: "an int", float: "a float", str: "text"}


def _value(name: str, value: Any, default: Any) -> Any:
    """A flag as the script would read it: also text, as on a command line."""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    wanted = type(default)
    if isinstance(value, str) and wanted is not str:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        try:
            value = words[value.lower()] if wanted is bool else wanted(value)
        except (KeyError, ValueError):
            raise ValueError(f"flag {name}={value!r}: expected {_KINDS[wanted]}.") from None
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is str and type(value) is int:
        value = str(value)
    if type(value) is not wanted:
        raise ValueError(f"flag {name}={value!r}: expected {_KINDS[wanted]}.")
    return value


def numbers(text: str, flag: str) -> tuple[int | float, ...]:
    """`"32,16,8"` as numbers."""
    try:
        values = tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        raise ValueError(f"flag {flag}={text!r}: expected numbers with commas between.") from None
    return tuple(int(v) if v == int(v) else v for v in values)
