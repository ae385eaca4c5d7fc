r"""Weights of EDM's networks in ours.

Official weights are named by side and place, `enc.32x32_block0.conv0.weight`, with attention inside
the residual blocks. With $\theta$ the official array and $\phi$ ours,

- convolution: $\phi_{hwio} = \theta_{oihw}$; linear and 1×1 convolution: $\phi_{io} = \theta_{oi}$;
- attention's qkv: official output channels are ordered $(\text{head}, c, \{q, k, v\})$, ours
  $(\{q, k, v\}, \text{head}, c)$;
- norms, biases: equal.

Filters and Fourier frequencies are buffers there and constants here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..nn._attention import AttentionBlock
from ..nn._block import ResBlock
from ..nn._body import UNetBody
from ..nn._dhariwal_unet import DhariwalUNet
from ..nn._pyramid import InputSkip, OutputSkip, ResidualPyramid
from ..nn._song_unet import SongUNet
from ._weights import (
    affine,
    CONV,
    CONV1X1,
    Entry,
    fill,
    Layout,
    layout,
    LINEAR,
    official,
    Path,
    skeleton,
    strip,
)


def _qkv(heads: int) -> tuple[Layout, Layout]:
    # The last axis from (head, c, 3) to (3, head, c), and back.
    def ours(a):
        a = a.reshape(*a.shape[:-1], heads, -1, 3)
        return np.moveaxis(a, -1, -3).reshape(*a.shape[:-3], -1)

    def theirs(a):
        a = a.reshape(*a.shape[:-1], 3, heads, -1)
        return np.moveaxis(a, -3, -1).reshape(*a.shape[:-3], -1)

    weight = layout(lambda a: ours(CONV1X1.to_ours(a)), lambda a: CONV1X1.to_official(theirs(a))[0])
    return weight, layout(ours, theirs)


def _block(
    name: str, where: Path, block: ResBlock, attention: AttentionBlock | None = None, at: Any = None
) -> Iterator[Entry]:
    yield from affine(f"{name}.norm0", where.at("norm1"))
    yield from affine(f"{name}.conv0", where.at("conv1"), CONV)
    yield from affine(f"{name}.affine", where.at("embedding"), LINEAR)
    yield from affine(f"{name}.norm1", where.at("norm2"))
    yield from affine(f"{name}.conv1", where.at("conv2"), CONV)
    if block.skip is not None:
        yield from affine(f"{name}.skip", where.at("skip"), CONV1X1)
    if attention is not None:
        weight, bias = _qkv(attention.num_heads)
        yield from affine(f"{name}.norm2", at.at("norm"))
        yield Entry((f"{name}.qkv.weight",), at.at("qkv", "weight"), weight)
        yield Entry((f"{name}.qkv.bias",), at.at("qkv", "bias"), bias)
        yield from affine(f"{name}.proj", at.at("out"), CONV1X1)


def _blocks(name: str, where: Path, level: Any) -> Iterator[Entry]:
    for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
        at = where.at("attentions", j)
        yield from _block(f"{name}{j}", where.at("blocks", j), block, attention, at)


def _encoder(body: UNetBody, side: int) -> Iterator[Entry]:
    yield from affine(f"enc.{side}x{side}_conv", Path(("body", "conv_in")), CONV)
    for i, level in enumerate(body.encoder):
        where, size = Path(("body", "encoder", i)), side >> i
        yield from _blocks(f"enc.{size}x{size}_block", where, level)
        # What leads to a level is named after it.
        name = f"enc.{size >> 1}x{size >> 1}"
        if level.resample is not None:
            yield from _block(f"{name}_down", where.at("resample"), level.resample)
        if isinstance(level.pyramid, InputSkip):
            yield from affine(f"{name}_aux_skip", where.at("pyramid", "project"), CONV1X1)
        elif isinstance(level.pyramid, ResidualPyramid):
            conv = where.at("pyramid", "resample", "conv")
            yield from affine(f"{name}_aux_residual", conv, CONV)


def _decoder(body: UNetBody, side: int) -> Iterator[Entry]:
    levels = len(body.decoder)
    lowest = side >> (levels - 1)
    yield from _blocks(f"dec.{lowest}x{lowest}_in", Path(("body", "middle")), body.middle)
    for i, level in enumerate(body.decoder):
        where, size = Path(("body", "decoder", i)), side >> (levels - 1 - i)
        name = f"dec.{size}x{size}"
        yield from _blocks(f"{name}_block", where, level)
        if isinstance(level.pyramid, OutputSkip):
            yield from _head(f"{name}_aux", where.at("pyramid", "head"))
        if level.resample is not None:
            up = f"dec.{2 * size}x{2 * size}_up"
            yield from _block(up, where.at("resample"), level.resample)


def _head(name: str, where: Path) -> Iterator[Entry]:
    yield from affine(f"{name}_norm", where.at("norm"))
    yield from affine(f"{name}_conv", where.at("conv"), CONV)


def _entries(net: SongUNet | DhariwalUNet, side: int) -> Iterator[Entry]:
    """Every parameter of `net`, which was trained on images of this side."""
    yield from affine("map_layer0", Path(("time_embedding", "linear1")), LINEAR)
    yield from affine("map_layer1", Path(("time_embedding", "linear2")), LINEAR)
    if net.class_embedding is not None:
        has = net.class_embedding.bias is not None
        yield from affine("map_label", Path(("class_embedding",)), LINEAR, bias=has)
    if net.augment_embedding is not None:
        yield from affine("map_augment", Path(("augment_embedding",)), LINEAR, bias=False)
    yield from _encoder(net.body, side)
    yield from _decoder(net.body, side)
    if net.body.out is not None:
        song = isinstance(net, SongUNet)
        name = f"dec.{side}x{side}_aux" if song else "out"
        yield from _head(name, Path(("body", "out")))


# Official keyword arguments and ours; the first is turned into factors of `img_resolution`.
_BOTH = {
    "attn_resolutions": "attention_downsamples",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "channel_mult_emb": "embedding_mult",
    "num_blocks": "num_res_blocks",
    "dropout": "dropout",
    "label_dim": "num_classes",
    "label_dropout": "label_dropout",
    "augment_dim": "augment_size",
}
_SONG = _BOTH | {
    "embedding_type": "embedding",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "channel_mult_noise": "noise_mult",
    "resample_filter": "kernel",
}
# Official defaults, where ours differ.
_DEFAULTS = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "attn_resolutions": (16,),
        "dropout": 0.1,
    },
    "DhariwalUNet": {"attn_resolutions": (32, 16, 8)},
}


def _arguments(config: Mapping[str, Any]) -> tuple[str, int, dict[str, Any]]:
    kind = config.get("model_type", "SongUNet")
    if kind not in _DEFAULTS:
        raise ValueError(f"model_type is 'SongUNet' or 'DhariwalUNet', got {kind!r}.")
    names = _SONG if kind == "SongUNet" else _BOTH
    given = {k: v for k, v in config.items() if k not in ("model_type", "img_resolution")}
    unknown = sorted(set(given) - set(names))
    needed = ("img_resolution", "in_channels", "out_channels")
    missing = [name for name in needed if name not in config]
    if unknown or missing:
        raise ValueError(
            f"config must hold the keyword arguments of EDM's {kind}; unknown: {unknown}, missing: "
            f"{missing}. Known are {sorted((*needed[:1], *names))}, and model_type."
        )
    side = config["img_resolution"]
    arguments = {names[k]: v for k, v in (_DEFAULTS[kind] | given).items()}
    for name in ("channel_mult", "kernel"):
        if name in arguments:
            arguments[name] = tuple(arguments[name])
    sides = arguments["attention_downsamples"]
    arguments["attention_downsamples"] = tuple(side // a for a in sides if a <= side)
    arguments["num_classes"] = arguments.get("num_classes") or None
    return kind, side, arguments


def _constants(arrays: dict[str, np.ndarray], arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    # Takes the buffers away, after a look at the filters.
    taps = tuple(arguments.get("kernel", (1, 1)))
    expected = np.outer(taps, taps) / np.sum(taps) ** 2
    weights = {}
    for name, array in arrays.items():
        if name == "map_noise.freqs":
            continue
        if not name.endswith(".resample_filter"):
            weights[name] = array
        elif array.size != expected.size or not np.allclose(
            np.reshape(array, expected.shape), expected
        ):
            raise ValueError(
                f"{name} is not the filter {taps} of config's resample_filter: "
                f"{np.squeeze(array).tolist()}."
            )
    return weights


def edm_network(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> SongUNet | DhariwalUNet:
    r"""Our `SongUNet` or `DhariwalUNet` with the weights of EDM's.

    EDM's files are pickles of whole objects, which need EDM's code to be read; turn them into state
    dicts once. There,

    ```python
    net = pickle.load(open("edm-cifar10-32x32-cond-vp.pkl", "rb"))["ema"]
    config = {"model_type": type(net.model).__name__, **net.model.init_kwargs}
    torch.save((config, net.model.state_dict()), "edm-cifar10-32x32-cond-vp.pt")
    ```

    and then, anywhere,

    ```python
    config, weights = torch.load("edm-cifar10-32x32-cond-vp.pt", weights_only=True)
    net = eqdiff.interop.edm_network(weights, config)
    ```

    **Arguments:**

    - `state_dict`: official names and arrays, of the network or of the preconditioned one around it
        (whose names begin with `model.`); anything that NumPy turns into arrays.
    - `config`: the keyword arguments of the official network, and as `model_type` its class.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.SongUNet`][] or [`eqdiff.nn.DhariwalUNet`][] with float32 parameters.

    **Raises:** `ValueError` that lists every missing, unexpected and mis-shaped weight by name, or the
    keys of `config` that are missing or unknown.
    """
    kind, side, arguments = _arguments(config)
    arrays = {k: np.asarray(a) for k, a in strip(strip(state_dict, "module."), "model.").items()}
    build = SongUNet if kind == "SongUNet" else DhariwalUNet
    if "map_noise.freqs" in arrays:
        arguments["frequencies"] = tuple(float(f) for f in arrays["map_noise.freqs"])
    weights = _constants(arrays, arguments)
    net = skeleton(lambda key: build(**arguments, compute_dtype=compute_dtype, key=key))
    return fill(net, _entries(net, side), weights)


def edm_state_dict(net: SongUNet | DhariwalUNet, img_resolution: int) -> dict[str, np.ndarray]:
    """The weights of a network under their names in EDM: the inverse of `edm_network`.

    Also names gradients, or an EMA, where those have the structure of the network.

    **Arguments:**

    - `net`: an [`eqdiff.nn.SongUNet`][] or [`eqdiff.nn.DhariwalUNet`][].
    - `img_resolution`: the side of the images that the names shall mention.

    **Returns:** official names and arrays in the official layout, without the buffers (filters and Fourier
    frequencies).
    """
    return official(net, _entries(net, img_resolution))
