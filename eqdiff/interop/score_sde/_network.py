r"""score_sde's networks and ours: the configuration, and the weights there and back.

The weights that count are the moving average. A checkpoint of the PyTorch code holds it as a list
without names, in the order of the trained parameters; one of the JAX code as a tree of names.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._shown import shortened, shown
from ..._types import Network
from ...nn import _flags
from ...nn._ends import Centred, DividedBySigma, unwrapped
from ...nn._ncsnv2 import NCSNv2
from ...nn._time_features import NoiseLevels
from ...nn._unet import UNet
from .._weights import checked_skeleton, fill, official
from .._wrapped import is_state, state_inside, without_prefix
from ._config import attention_factors, network_fields, sigma_levels
from ._entries import entries
from ._entries_flax import flax_entries


# The number of stages of ncsnv2_64, _128 and _256: widths and dilations.
_NCSNV2 = {
    "ncsnv2_64": ((1, 2, 2, 2), (1, 1, 2, 4)),
    "ncsnv2_128": ((1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
    "ncsnv2_256": ((1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4)),
}
# What one name of every network of the PyTorch code begins with, whatever stands in front.
STARTS = ("all_modules.0.", "begin_conv.weight")
# Of Flax's names, more than any of the networks here has.
_DEEPEST, _LONGEST = 8, 400
# What PyTorch's `ncsnpp` holds, and does not use, where its blocks are not told the time.
_UNUSED = re.compile(r"all_modules\.\d+\.Dense_0\.(weight|bias)")


def network(
    config: Mapping[str, Any], frequencies: tuple[float, ...] | None, compute_dtype: Any
) -> tuple[Any, dict[str, Any]]:
    """What makes our network for an official configuration, and its arguments."""
    name, model, data = network_fields(config)
    channels = data["num_channels"]
    common: dict[str, Any] = dict(centred=data["centered"], compute_dtype=compute_dtype)
    common |= dict(in_channels=channels, out_channels=channels, channels=model["nf"])
    if name in _NCSNV2:
        mult, dilations = _NCSNV2[name]
        return NCSNv2, common | dict(channel_mult=mult, dilations=dilations)
    scaled = model.get("scale_by_sigma", False)
    common |= dict(
        channel_mult=tuple(model["ch_mult"]),
        num_res_blocks=model["num_res_blocks"],
        attention_downsamples=attention_factors(model, data),
        dropout=model["dropout"],
        conv_resample=model["resamp_with_conv"],
        nonlinearity=model["nonlinearity"].lower(),
        scale_by_sigma=scaled,
    )
    if name == "ddpm":
        # Told the time by sinusoids, whatever `conditional` and `embedding_type` say.
        levels = sigma_levels(model) if scaled else None
        return _flags.ddpm, common | dict(sigma_levels=levels)
    embedding = model["embedding_type"].lower()
    return _flags.ncsnpp, dict(
        block=model["resblock_type"].lower(),
        fir_kernel=tuple(model["fir_kernel"]) if model["fir"] else None,
        skip_rescale=model["skip_rescale"],
        progressive=model["progressive"].lower(),
        progressive_input=model["progressive_input"].lower(),
        progressive_combine=model["progressive_combine"].lower(),
        embedding=embedding,
        conditional=model["conditional"],
        fourier_scale=float(model.get("fourier_scale", 16)),
        frequencies=frequencies,
        init_scale=model["init_scale"],
        sigma_levels=sigma_levels(model) if scaled and embedding == "positional" else None,
        **common,
    )


def _buffers(state_dict: Mapping[str, Any]) -> list[str]:
    # Fourier frequencies are the only one-dimensional W: a NIN's is a matrix.
    return [
        n for n, a in state_dict.items() if n == "sigmas" or (n[-2:] == ".W" and np.ndim(a) == 1)
    ]


def _named_average(model: Mapping[str, Any], ema: Any, source: str) -> dict[str, Any]:
    """The state dict of PyTorch's average, buffers included."""
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(shadow, list | tuple):
        raise ValueError(
            f"{source} has an 'ema' without 'shadow_params', expected a list of tensors."
        )
    names = without_prefix(model, STARTS, source)
    buffers = _buffers(names)
    trained = [name for name in names if name not in buffers]
    expected = [np.shape(names[name]) for name in trained]
    given = [np.shape(array) for array in shadow]
    if expected != given:
        pairs = enumerate(zip(expected, given, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), None)
        where = ""
        if at is not None:
            where = (
                f"; {shortened(trained[at], 80)} has shape {expected[at]}, {given[at]} was given"
            )
        raise ValueError(
            f"the model has {len(expected)} trained parameters, the average {len(given)}{where}."
        )
    return {name: names[name] for name in buffers} | dict(zip(trained, shadow, strict=True))


def average(contents: Any, source: str) -> Any:
    """The moving average of a training state's weights; weights alone are returned as they are."""
    if isinstance(contents, Mapping) and {"model", "ema"} <= contents.keys():
        if is_state(contents["ema"]):
            return state_inside(contents, source)
        return _named_average(contents["model"], contents["ema"], source)
    if isinstance(contents, Mapping) and "params_ema" in contents:
        return contents["params_ema"]
    return contents


def is_tree(weights: Any) -> bool:
    """Whether the names are Flax's, which are nested; PyTorch's are flat."""
    return isinstance(weights, Mapping) and any(isinstance(v, Mapping) for v in weights.values())


def score_sde_network(
    weights: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> Network:
    r"""Our network with the weights of score_sde's `ddpm`, `ncsnpp` or `ncsnv2_*`.

    Where the official network's time input is σ or the number of a noise level, ours is
    $\log\sigma$ (and the official output, the score, is divided by σ); elsewhere they are the same:
    see [`eqdiff.nn.DividedBySigma`][].

    **Arguments:**

    - `weights`: the contents of a checkpoint, whose moving average is taken; or weights alone, a
        state dict of the PyTorch code or the nested dictionary of a Flax module's parameters;
        anything that NumPy turns into arrays. Of another program's training state the average is
        read where it is one of names and arrays (`"ema"`, …), with a warning that says so; prefixes
        of data-parallel training (`module.`), `torch.compile` and Lightning are taken off.
        With `model.conditional=False` an `ncsnpp` of the PyTorch code holds maps of an embedding
        that it does not have (`Dense_0` in every block); they are left out. (A `ddpm` takes the
        time whatever that field says, there as here.)
    - `config`: the official configuration, a `ConfigDict` or nested dictionaries; of it are used
        `data.image_size`, `data.num_channels`, `data.centered` and `model`, of which every field
        that its network has is read or refused.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][], in an [`eqdiff.nn.Centred`][] where data are in [0, 1] and
    an [`eqdiff.nn.DividedBySigma`][] where the output is a score; or an [`eqdiff.nn.NCSNv2`][].
    Parameters are float32.

    **Raises:** `ValueError` with the names of missing, unexpected and mis-shaped weights, or
    what `config` lacks; and for NCSNv2 in JAX, whose code differs from the PyTorch code that our
    network follows.

    **Example:**

    ```python
    checkpoint = eqd.interop.read_torch("checkpoint_24.pth")  # or read_flax("checkpoint_24")
    net = eqd.interop.score_sde_network(checkpoint, config)  # `config` the official one
    ```
    """
    weights = average(weights, "the checkpoint")
    if is_tree(weights):
        inside = state_inside(weights, "the checkpoint")
        if not any(start in name for name in inside for start in STARTS):
            return _from_tree(weights, config, compute_dtype)
        weights = inside
    named = without_prefix(weights, STARTS, "the checkpoint")
    arrays = {name: np.asarray(a) for name, a in named.items()}
    fourier = arrays.get("all_modules.0.W")
    net = _skeleton(config, arrays, fourier, compute_dtype, "all_modules.0.W")
    inner = unwrapped(net)
    unused = set(_buffers(arrays))
    if isinstance(inner, UNet) and inner.embed is None:
        unused.update(filter(_UNUSED.fullmatch, arrays))
    time = inner.embed.time if isinstance(inner, UNet) and inner.embed is not None else None
    if isinstance(time, NoiseLevels) and "sigmas" in arrays:
        sigmas = arrays["sigmas"]
        found = float(sigmas[-1]), float(sigmas[0]), len(sigmas)
        levels = time.levels
        if not np.allclose(found, levels, rtol=1e-5):
            raise ValueError(
                f"the weights are for {found[2]} noise levels from {found[0]:g} to {found[1]:g}, "
                f"config says {levels[2]} from {levels[0]:g} to {levels[1]:g}."
            )
    kept = {n: a for n, a in arrays.items() if n not in unused}
    return _filled(net, lambda inner: entries(inner, fourier is not None), kept)


def _skeleton(
    config: Mapping[str, Any],
    weights: Mapping[str, Any],
    fourier: Any,
    compute_dtype: Any,
    name: str,
) -> Any:
    frequencies = None if fourier is None else tuple(float(w) for w in fourier)
    make, arguments = network(config, frequencies, compute_dtype)
    if fourier is None and arguments.get("embedding") == "fourier":
        raise ValueError(
            f"config has embedding_type='fourier', but the weights have no frequencies {name}."
        )
    return checked_skeleton(make, arguments, weights)


def _from_tree(params: Mapping[str, Any], config: Mapping[str, Any], compute_dtype: Any) -> Network:
    name = config.get("model", {}).get("name", "")
    if str(name).startswith("ncsnv2"):
        raise ValueError(
            "NCSNv2 in JAX normalises with another variance and resizes with other corners than in "
            "PyTorch, whose network eqdiff.nn.NCSNv2 is: these weights would give other numbers. "
            "Use a .pth of score_sde_pytorch."
        )
    params = params.get("params", params)
    arrays = {name: _one_axis(name, array) for name, array in _flat(params).items()}
    frequencies = "GaussianFourierProjection_0.W"
    fourier = arrays.pop(frequencies, None)
    net = _skeleton(config, arrays, fourier, compute_dtype, frequencies)
    suffix = "pp" if name == "ncsnpp" else ""
    return _filled(net, lambda inner: flax_entries(inner, suffix), arrays)


def _filled(net: Network, entries: Any, arrays: Mapping[str, Any]) -> Network:
    # Weights are those of the network inside.
    if isinstance(net, Centred | DividedBySigma):
        return type(net)(_filled(net.net, entries, arrays))
    return fill(net, entries(net), arrays)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    # Names inside names are longer than what the file says of each.
    if prefix.count(".") > _DEEPEST or len(prefix) > _LONGEST:
        raise ValueError(f"names nested as deep as {shown(prefix)} are not those of a Flax module.")
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = np.asarray(value)
    return flat


def _one_axis(name: str, array: np.ndarray) -> np.ndarray:
    # Early versions of Flax gave the scale and the bias of a normalisation four axes.
    wide = ".GroupNorm_" in f".{name}" and array.ndim == 4 and array.shape[:3] == (1, 1, 1)
    return array[0, 0, 0] if wide else array


def score_sde_state_dict(net: Network) -> dict[str, np.ndarray]:
    """The weights of a network under the names of score_sde's PyTorch code.

    This is the inverse of [`eqdiff.interop.score_sde_network`][]. Gradients and an EMA, which have
    the structure of the network, can be given instead.

    **Arguments:**

    - `net`: an [`eqdiff.nn.UNet`][] in the style of DDPM or NCSN++, in its wrappers or without, or
        an [`eqdiff.nn.NCSNv2`][].

    **Returns:** official names and arrays in the official layout, without the buffers (noise levels
    and Fourier frequencies).

    **Example:**

    ```python
    sizes = dict(channels=32, channel_mult=(1,), num_res_blocks=1)
    net = eqd.nn.presets.ddpm_cifar10(**sizes, key=jax.random.key(0))
    weights = eqd.interop.score_sde_state_dict(net)  # official names and arrays
    ```
    """
    inner: Any = unwrapped(net)
    return official(inner, entries(inner))
