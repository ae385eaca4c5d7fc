r"""Weights of score_sde's networks (the PyTorch code) in ours.

Official weights are numbered in the order in which the layers were made, `all_modules.N.…`; the same
order is walked here. With $\theta$ the official array and $\phi$ ours,

- convolution: $\phi_{hwio} = \theta_{oihw}$; linear and 1×1 convolution: $\phi_{io} = \theta_{oi}$;
- "NIN", a 1×1 convolution in another notation: equal; attention's q, k and v are three of them there
  and one map here;
- norms, biases: equal.

Fourier frequencies and noise levels are buffers there and constants here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..nn._attention import AttentionBlock
from ..nn._block import ResBlock
from ..nn._body import UNetBody
from ..nn._ddpm import DDPM
from ..nn._fir import DownsampleConv, UpsampleConv
from ..nn._ncsnpp import NCSNpp
from ..nn._ncsnv2 import DilatedBlock, NCSNv2, RefineBlock, ResidualUnit
from ..nn._pyramid import InputSkip, OutputSkip, OutputStart, ResidualPyramid
from ._weights import (
    affine,
    CONV,
    CONV1X1,
    Entry,
    fill,
    Layout,
    LINEAR,
    official,
    Path,
    SAME,
    skeleton,
    strip,
)


_NIN = ("W", "b")
QKV = Layout(
    lambda *parts: np.concatenate(parts, axis=-1),
    lambda a: tuple(np.split(a, 3, axis=-1)),
)


def _res_block(name: str, where: Path, block: ResBlock, biggan: bool) -> Iterator[Entry]:
    yield from affine(f"{name}.GroupNorm_0", where.at("norm1"))
    yield from affine(f"{name}.Conv_0", where.at("conv1"), CONV)
    if block.embedding is not None:
        yield from affine(f"{name}.Dense_0", where.at("embedding"), LINEAR)
    yield from affine(f"{name}.GroupNorm_1", where.at("norm2"))
    yield from affine(f"{name}.Conv_1", where.at("conv2"), CONV)
    if block.skip is not None and biggan:
        yield from affine(f"{name}.Conv_2", where.at("skip"), CONV1X1)
    elif block.skip is not None:
        yield from affine(f"{name}.NIN_0", where.at("skip"), names=_NIN)


def _attention(name: str, where: Path) -> Iterator[Entry]:
    yield from affine(f"{name}.GroupNorm_0", where.at("norm"))
    for ours, theirs in zip(("weight", "bias"), _NIN, strict=True):
        names = tuple(f"{name}.NIN_{i}.{theirs}" for i in range(3))
        yield Entry(names, where.at("qkv", ours), QKV)
    yield from affine(f"{name}.NIN_3", where.at("out"), names=_NIN)


class _Counter:
    """Entries of the next official module, whatever its class."""

    def __init__(self, biggan: bool):
        self.number, self.biggan = 0, biggan

    def name(self) -> str:
        self.number += 1
        return f"all_modules.{self.number - 1}"

    def layer(self, where: Path, weight: Layout) -> Iterator[Entry]:
        yield from affine(self.name(), where, weight)

    def head(self, where: Path) -> Iterator[Entry]:
        yield from self.layer(where.at("norm"), SAME)
        yield from self.layer(where.at("conv"), CONV)

    def module(self, where: Path, layer: Any) -> Iterator[Entry]:
        """One that has layers inside; a resampling without any is counted too."""
        name = self.name()
        if isinstance(layer, ResBlock):
            yield from _res_block(name, where, layer, self.biggan)
        elif isinstance(layer, AttentionBlock):
            yield from _attention(name, where)
        elif isinstance(layer, DownsampleConv | UpsampleConv):
            yield from affine(f"{name}.Conv2d_0", where.at("conv"), CONV)
        elif getattr(layer, "conv", None) is not None:
            yield from affine(f"{name}.Conv_0", where.at("conv"), CONV)

    def pyramid(self, where: Path, layer: Any) -> Iterator[Entry]:
        if isinstance(layer, InputSkip):
            yield from affine(f"{self.name()}.Conv_0", where.at("project"), CONV1X1)
        elif isinstance(layer, OutputSkip | OutputStart):
            yield from self.head(where.at("head"))
        elif isinstance(layer, ResidualPyramid):
            yield from self.module(where.at("resample"), layer.resample)

    def level(self, where: Path, level: Any) -> Iterator[Entry]:
        for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
            yield from self.module(where.at("blocks", j), block)
            if attention is not None:
                yield from self.module(where.at("attentions", j), attention)

    def body(self, body: UNetBody, where: Path) -> Iterator[Entry]:
        yield from self.layer(where.at("conv_in"), CONV)
        for i, level in enumerate(body.encoder):
            at = where.at("encoder", i)
            yield from self.level(at, level)
            # Going down a level is resampled before its pyramid, going up after it.
            if level.resample is not None:
                yield from self.module(at.at("resample"), level.resample)
            yield from self.pyramid(at.at("pyramid"), level.pyramid)
        yield from self.level(where.at("middle"), body.middle)
        for i, level in enumerate(body.decoder):
            at = where.at("decoder", i)
            yield from self.level(at, level)
            yield from self.pyramid(at.at("pyramid"), level.pyramid)
            if level.resample is not None:
                yield from self.module(at.at("resample"), level.resample)
        if body.out is not None:
            yield from self.head(where.at("out"))


def _norm_plus(name: str, where: Path) -> Iterator[Entry]:
    for part in ("alpha", "gamma", "beta"):
        yield Entry((f"{name}.{part}",), where.at(part), SAME)


def _unit(name: str, where: Path, unit: ResidualUnit) -> Iterator[Entry]:
    for i, pair in enumerate(unit.convs):
        for j in range(len(pair)):
            at = where.at("convs", i, j)
            yield from affine(f"{name}.{i + 1}_{j + 1}_conv", at, CONV, bias=False)


def _dilated_block(name: str, where: Path, block: DilatedBlock) -> Iterator[Entry]:
    inner = ".conv" if block.pool else ""
    yield from affine(f"{name}.conv1", where.at("conv1"), CONV)
    yield from _norm_plus(f"{name}.normalize2", where.at("norm2"))
    yield from affine(f"{name}.conv2{inner}", where.at("conv2"), CONV)
    if block.skip is not None:
        yield from affine(f"{name}.shortcut{inner}", where.at("skip"), CONV)
    yield from _norm_plus(f"{name}.normalize1", where.at("norm1"))


def _refine_block(name: str, where: Path, block: RefineBlock) -> Iterator[Entry]:
    for j, unit in enumerate(block.adapt):
        yield from _unit(f"{name}.adapt_convs.{j}", where.at("adapt", j), unit)
    yield from _unit(f"{name}.output_convs", where.at("refine"), block.refine)
    for j in range(len(block.fuse or ())):
        yield from affine(f"{name}.msf.convs.{j}", where.at("fuse", j), CONV)
    for j in range(len(block.pooled)):
        yield from affine(f"{name}.crp.convs.{j}", where.at("pooled", j), CONV, bias=False)


def _ncsnv2(net: NCSNv2) -> Iterator[Entry]:
    yield from affine("begin_conv", Path(("conv_in",)), CONV)
    yield from _norm_plus("normalizer", Path(("norm_out",)))
    yield from affine("end_conv", Path(("conv_out",)), CONV)
    numbers = [str(i + 1) for i in range(len(net.stages))]
    if len(numbers) == 6:  # ncsnv2_256 has its extra stage in the middle.
        numbers = ["1", "2", "3", "31", "4", "5"]
    for i, stage in enumerate(net.stages):
        for j, block in enumerate(stage):
            yield from _dilated_block(f"res{numbers[i]}.{j}", Path(("stages", i, j)), block)
    for i, block in enumerate(net.refines):
        yield from _refine_block(f"refine{numbers[i]}", Path(("refines", i)), block)


def _entries(net: DDPM | NCSNpp | NCSNv2) -> Iterator[Entry]:
    """Every parameter of `net`, in the order in which the official layers were made."""
    if isinstance(net, NCSNv2):
        yield from _ncsnv2(net)
        return
    count = _Counter(isinstance(net, NCSNpp) and net.block == "biggan")
    if isinstance(net, NCSNpp) and net.embedding == "fourier":
        count.name()
    if net.time_embedding is not None:
        yield from count.layer(Path(("time_embedding", "linear1")), LINEAR)
        yield from count.layer(Path(("time_embedding", "linear2")), LINEAR)
    yield from count.body(net.body, Path(("body",)))


# The number of stages of ncsnv2_64, _128 and _256: widths and dilations.
_NCSNV2 = {
    "ncsnv2_64": ((1, 2, 2, 2), (1, 1, 2, 4)),
    "ncsnv2_128": ((1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
    "ncsnv2_256": ((1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4)),
}
_NEEDED = {
    "ddpm": "nf ch_mult num_res_blocks attn_resolutions dropout resamp_with_conv conditional",
    "ncsnpp": "nf ch_mult num_res_blocks attn_resolutions dropout resamp_with_conv conditional fir "
    "fir_kernel skip_rescale resblock_type progressive progressive_input progressive_combine "
    "embedding_type init_scale scale_by_sigma",
} | {name: "nf" for name in _NCSNV2}


def _model(config: Mapping[str, Any]) -> tuple[str, Any, Any]:
    try:
        model, data = config["model"], config["data"]
        name = model["name"]
    except KeyError as e:
        raise ValueError(
            "config is score_sde's, with parts 'model' and 'data' that hold model.name, "
            f"data.image_size, data.num_channels and data.centered; {e} is missing."
        ) from e
    if name not in _NEEDED:
        raise ValueError(f"model.name is one of {sorted(_NEEDED)}, got {name!r}.")
    needed = [f"model.{key}" for key in _NEEDED[name].split() if key not in model]
    needed += [
        f"data.{key}" for key in ("image_size", "num_channels", "centered") if key not in data
    ]
    if needed:
        raise ValueError(f"config of a {name} lacks {', '.join(needed)}.")
    return name, model, data


def _sigma_levels(model: Any) -> tuple[float, float, int] | None:
    if not model.get("scale_by_sigma", False) or model.get("embedding_type") == "fourier":
        return None
    return float(model["sigma_min"]), float(model["sigma_max"]), model["num_scales"]


def build_score_network(
    config: Mapping[str, Any], frequencies: tuple[float, ...] | None, compute_dtype: Any, key: Any
) -> DDPM | NCSNpp | NCSNv2:
    """Our network for an official configuration."""
    name, model, data = _model(config)
    channels = data["num_channels"]
    common: dict[str, Any] = dict(centred=data["centered"], compute_dtype=compute_dtype, key=key)
    if name in _NCSNV2:
        mult, dilations = _NCSNV2[name]
        return NCSNv2(channels, channels, model["nf"], mult, dilations, **common)
    common |= dict(
        in_channels=channels,
        out_channels=channels,
        channels=model["nf"],
        channel_mult=tuple(model["ch_mult"]),
        num_res_blocks=model["num_res_blocks"],
        attention_downsamples=tuple(data["image_size"] // r for r in model["attn_resolutions"]),
        dropout=model["dropout"],
        conv_resample=model["resamp_with_conv"],
        conditional=model["conditional"],
        scale_by_sigma=model.get("scale_by_sigma", False),
    )
    if name == "ddpm":
        # Every DDPM of score_sde is told its label by sinusoids, whatever embedding_type says.
        levels = _sigma_levels({**model, "embedding_type": "positional"})
        return DDPM(sigma_levels=levels, **common)
    return NCSNpp(
        block=model["resblock_type"].lower(),
        fir_kernel=tuple(model["fir_kernel"]) if model["fir"] else None,
        skip_rescale=model["skip_rescale"],
        progressive=model["progressive"].lower(),
        progressive_input=model["progressive_input"].lower(),
        progressive_combine=model["progressive_combine"].lower(),
        embedding=model["embedding_type"].lower(),
        fourier_scale=float(model.get("fourier_scale", 16)),
        frequencies=frequencies,
        init_scale=model["init_scale"],
        sigma_levels=_sigma_levels(model),
        **common,
    )


def _buffers(state_dict: Mapping[str, Any]) -> list[str]:
    # Fourier frequencies are the only one-dimensional W: a NIN's is a matrix.
    return [
        n for n, a in state_dict.items() if n == "sigmas" or (n[-2:] == ".W" and np.ndim(a) == 1)
    ]


def score_sde_network(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> DDPM | NCSNpp | NCSNv2:
    r"""Our network with the weights of score_sde_pytorch's `ddpm`, `ncsnpp` or `ncsnv2_*`.

    ```python
    file = eqdiff.interop.read_torch("checkpoint_24.pth")
    weights = eqdiff.interop.score_sde_ema(file["model"], file["ema"]["shadow_params"])
    net = eqdiff.interop.score_sde_network(weights, config)
    ```

    What the network is told is $\log\sigma$ where the official one is told σ or the number of a noise
    level (then its output, the score, is divided by σ), and the official label elsewhere: see
    [`eqdiff.nn.NCSNpp`][].

    **Arguments:**

    - `state_dict`: official names and arrays; anything that NumPy turns into arrays. The `module.` of
        data-parallel training is taken off.
    - `config`: the official configuration, a `ConfigDict` or nested dictionaries; of it are used
        `data.image_size`, `data.num_channels`, `data.centered` and `model`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.DDPM`][], [`eqdiff.nn.NCSNpp`][] or [`eqdiff.nn.NCSNv2`][] with
    float32 parameters.

    **Raises:** `ValueError` that lists every missing, unexpected and mis-shaped weight by name, or what
    `config` lacks.
    """
    arrays = {name: np.asarray(a) for name, a in strip(state_dict, "module.").items()}
    fourier = arrays.get("all_modules.0.W")
    frequencies = None if fourier is None else tuple(float(w) for w in fourier)
    net = skeleton(lambda key: build_score_network(config, frequencies, compute_dtype, key))
    buffers = _buffers(arrays)
    levels = getattr(net, "sigma_levels", None)
    if levels is not None and "sigmas" in arrays:
        sigmas = arrays["sigmas"]
        found = float(sigmas[-1]), float(sigmas[0]), len(sigmas)
        if not np.allclose(found, levels, rtol=1e-5):
            raise ValueError(
                f"the weights are for {found[2]} noise levels from {found[0]:g} to {found[1]:g}, "
                f"config says {levels[2]} from {levels[0]:g} to {levels[1]:g}."
            )
    return fill(net, _entries(net), {n: a for n, a in arrays.items() if n not in buffers})


def score_sde_state_dict(net: DDPM | NCSNpp | NCSNv2) -> dict[str, np.ndarray]:
    """The weights of a network under their names in score_sde: the inverse of `score_sde_network`.

    Also names gradients, or an EMA, where those have the structure of the network.

    **Arguments:**

    - `net`: an [`eqdiff.nn.DDPM`][], [`eqdiff.nn.NCSNpp`][] or [`eqdiff.nn.NCSNv2`][].

    **Returns:** official names and arrays in the official layout, without the buffers (noise levels and
    Fourier frequencies).
    """
    return official(net, _entries(net))


def score_sde_ema(state_dict: Mapping[str, Any], shadow_params: Sequence[Any]) -> dict[str, Any]:
    """The moving average of score_sde's weights, which its files hold as a list without names.

    **Arguments:**

    - `state_dict`: the `"model"` of the file.
    - `shadow_params`: its `["ema"]["shadow_params"]`: the trained parameters in the order of the
        former.

    **Returns:** a state dict, buffers included.

    **Raises:** `ValueError` where the two do not fit.
    """
    names = strip(state_dict, "module.")
    buffers = _buffers(names)
    trained = [name for name in names if name not in buffers]
    expected = [np.shape(names[name]) for name in trained]
    given = [np.shape(array) for array in shadow_params]
    if expected != given:
        at = next(
            (i for i, (a, b) in enumerate(zip(expected, given, strict=False)) if a != b), None
        )
        where = (
            "" if at is None else f"; {trained[at]} has shape {expected[at]}, {given[at]} was given"
        )
        raise ValueError(
            f"the model has {len(expected)} trained parameters, the average {len(given)}{where}."
        )
    return {name: names[name] for name in buffers} | dict(zip(trained, shadow_params, strict=True))
