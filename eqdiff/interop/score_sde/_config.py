"""What a configuration of score_sde says of a network: every field is read, or refused by name.

The official code builds a network from `model` and from the side, the channels and the range of
`data`. Each class reads its own fields of `model`; the others in the same configuration belong to
the SDE, to training, or to another class, and change nothing. Two are not what they seem:

- `ddpm` looks at `conditional` and then passes the embedding of the time to every block all the
  same, in PyTorch and in JAX: the network is the same whatever the field says;
- `fourier_scale` is only how frequencies were drawn, and those are in the weights.
"""

import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..._shown import shown
from .._reading import number_of_steps


NCSNV2 = ("ncsnv2_64", "ncsnv2_128", "ncsnv2_256")
_NONLINEARITIES = ("swish", "elu", "relu", "lrelu")
_UNET = "nonlinearity nf ch_mult num_res_blocks attn_resolutions dropout resamp_with_conv"
_NEEDED = {
    "ddpm": f"{_UNET} conditional",
    "ncsnpp": f"{_UNET} conditional fir fir_kernel skip_rescale resblock_type progressive "
    "progressive_input progressive_combine embedding_type init_scale scale_by_sigma",
} | {name: "nonlinearity nf" for name in NCSNV2}
# Of the SDE, of training, and of `ncsn`; and those that have one value in every official file.
_OTHER = "name ema_rate sigma_min sigma_max num_scales beta_min beta_max fourier_scale num_classes"
_SINGLE = "normalization attention_type conv_size interpolation scale_by_sigma"
_KNOWN = frozenset(" ".join((*_NEEDED.values(), _OTHER, _SINGLE)).split())


class _Kind(NamedTuple):
    """What a field may be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _one_of(*names: Any) -> _Kind:
    words = " or ".join(filter(None, (", ".join(map(repr, names[:-1])), repr(names[-1]))))
    # The official code lowers its words.
    return _Kind(words, lambda v: (v.lower() if isinstance(v, str) else v) in names)


def _exactly(value: Any) -> _Kind:
    words = f"{value!r}, which is what the official network has"
    return _Kind(words, lambda v: type(v) is type(value) and v == value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) > 0


_BOOL = _Kind("True or False", lambda v: isinstance(v, bool))
_NUMBER = _Kind("a number", _is_number)
_COUNT = _Kind("a positive whole number", _is_count)
_COUNTS = _Kind(
    "positive whole numbers", lambda v: isinstance(v, list | tuple) and all(map(_is_count, v))
)
_NUMBERS = _Kind("numbers", lambda v: isinstance(v, list | tuple) and all(map(_is_number, v)))
_UNET_KINDS = {
    "nonlinearity": _one_of(*_NONLINEARITIES),
    "normalization": _exactly("GroupNorm"),
    "nf": _COUNT,
    "ch_mult": _COUNTS,
    "num_res_blocks": _COUNT,
    "attn_resolutions": _COUNTS,
    "dropout": _NUMBER,
    "resamp_with_conv": _BOOL,
    "conditional": _BOOL,
    "scale_by_sigma": _BOOL,
}
_NCSNPP_KINDS = _UNET_KINDS | {
    "fir": _BOOL,
    "fir_kernel": _NUMBERS,
    "skip_rescale": _BOOL,
    "resblock_type": _one_of("biggan", "ddpm"),
    "progressive": _one_of("none", "output_skip", "residual"),
    "progressive_input": _one_of("none", "input_skip", "residual"),
    "progressive_combine": _one_of("sum", "cat"),
    "embedding_type": _one_of("fourier", "positional"),
    "init_scale": _NUMBER,
    "fourier_scale": _NUMBER,
    # No code reads these two; with other values it would not be the official network.
    "attention_type": _exactly("ddpm"),
    "conv_size": _exactly(3),
}
_NCSNV2_KINDS = {
    "nonlinearity": _exactly("elu"),
    "normalization": _exactly("InstanceNorm++"),
    "interpolation": _exactly("bilinear"),
    "nf": _COUNT,
}
_KINDS = {"ddpm": _UNET_KINDS, "ncsnpp": _NCSNPP_KINDS} | {n: _NCSNV2_KINDS for n in NCSNV2}
_DATA_KINDS = {"image_size": _COUNT, "num_channels": _COUNT, "centered": _BOOL}


def network_fields(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """The name of the network, `config.model` and `config.data`, once every field is known to be
    one that the network of that name takes.

    **Raises:** `ValueError` with the name of a field that is missing, unknown, or has a value that
    no network of this library has.
    """
    try:
        model, data = config["model"], config["data"]
        name = model["name"]
    except KeyError as e:
        raise ValueError(
            "config is score_sde's, with parts 'model' and 'data' that hold model.name, "
            f"data.image_size, data.num_channels and data.centered; {e} is missing."
        ) from e
    if not isinstance(name, str) or name not in _NEEDED:
        raise ValueError(f"model.name is one of {sorted(_NEEDED)}, got {shown(name)}.")
    needed = [f"model.{key}" for key in _NEEDED[name].split() if key not in model]
    needed += [f"data.{key}" for key in _DATA_KINDS if key not in data]
    if needed:
        raise ValueError(f"config of a {name} lacks {', '.join(needed)}.")
    problems = [*_misfits("model", model, _KINDS[name]), *_misfits("data", data, _DATA_KINDS)]
    if problems:
        raise ValueError(f"config of a {name}: {'; '.join(problems)}.")
    unknown = [f"model.{key}={shown(model[key])}" for key in model if key not in _KNOWN]
    if unknown:
        raise ValueError(
            f"config has {', '.join(unknown)}, which no network of score_sde reads, so that what "
            "it changes is not known here. Leave out what changes nothing."
        )
    return name, model, data


def _misfits(part: str, given: Mapping[str, Any], kinds: Mapping[str, _Kind]) -> list[str]:
    return [
        f"{part}.{key}={shown(given[key])}, expected {kind.words}"
        for key, kind in kinds.items()
        if key in given and not kind.fits(given[key])
    ]


def sigma_levels(model: Mapping[str, Any]) -> tuple[float, float, int]:
    """The smallest and the largest noise level of a network that takes their number, and how
    many.

    **Raises:** `ValueError` where one is missing.
    """
    names = ("sigma_min", "sigma_max", "num_scales")
    missing = [name for name in names if name not in model]
    if missing:
        raise ValueError(f"config.model lacks {', '.join(missing)}.")
    steps = number_of_steps(model["num_scales"], "config.model.num_scales")
    return float(model["sigma_min"]), float(model["sigma_max"]), steps


def attention_factors(model: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[int, ...]:
    """The factors of downsampling at which a level has attention; a side that no level has is not
    one of them."""
    factors = [2**i for i in range(len(model["ch_mult"]))]
    sides = model["attn_resolutions"]
    return tuple(factor for factor in factors if data["image_size"] // factor in sides)
