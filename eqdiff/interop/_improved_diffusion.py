r"""Weights of improved-diffusion's `UNetModel` in our `UNet`.

Every parameter of the network is listed with its official name, where it lives here, and how the
two arrays correspond. With $\theta$ the official array and $\phi$ ours, that correspondence is a
permutation of entries:

- convolution: $\phi_{hwio} = \theta_{oihw}$; linear and 1×1 convolution: $\phi_{io} = \theta_{oi}$;
- attention's qkv: official output channels are ordered $(\text{head}, \{q, k, v\}, c)$, ours
  $(\{q, k, v\}, \text{head}, c)$;
- norms, biases and embeddings are equal.

No name is guessed from a shape or an order, so a file of another architecture fails loudly.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..nn._attention import AttentionBlock
from ..nn._block import ResBlock
from ..nn._resample import Downsample, Upsample
from ..nn._super_resolution import SuperResolution
from ..nn._unet import UNet


class Layout(NamedTuple):
    """How an official array becomes ours, and back."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray], np.ndarray]


# A parameter: its official name, its place in our network, and the layout of its array.
Entry = tuple[str, Callable[[Any], Any], Layout]

_SAME = Layout(lambda a: a, lambda a: a)
_CONV = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
_LINEAR = Layout(lambda a: a.T, lambda a: a.T)
_CONV1D = Layout(lambda a: a[:, :, 0].T, lambda a: a.T[:, :, None])
_CONV1X1 = Layout(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])


def _qkv_bias(heads: int) -> Layout:
    def swap(a, first, second):
        return a.reshape(first, second, -1).swapaxes(0, 1).reshape(-1)

    return Layout(lambda a: swap(a, heads, 3), lambda a: swap(a, 3, heads))


def _qkv_weight(heads: int) -> Layout:
    def swap(a, first, second):
        return a.reshape(a.shape[0], first, second, -1).swapaxes(1, 2).reshape(a.shape)

    return Layout(
        lambda a: swap(_CONV1D.to_ours(a), heads, 3),
        lambda a: _CONV1D.to_official(swap(a, 3, heads)),
    )


def _affine(
    name: str, where: Callable, weight: Layout = _SAME, bias: Layout = _SAME
) -> Iterator[Entry]:
    yield f"{name}.weight", lambda net: where(net).weight, weight
    yield f"{name}.bias", lambda net: where(net).bias, bias


def _res_block(name: str, where: Callable, block: ResBlock) -> Iterator[Entry]:
    yield from _affine(f"{name}.in_layers.0", lambda net: where(net).norm1)
    yield from _affine(f"{name}.in_layers.2", lambda net: where(net).conv1, _CONV)
    yield from _affine(f"{name}.emb_layers.1", lambda net: where(net).embedding, _LINEAR)
    yield from _affine(f"{name}.out_layers.0", lambda net: where(net).norm2)
    yield from _affine(f"{name}.out_layers.3", lambda net: where(net).conv2, _CONV)
    if block.skip is not None:
        yield from _affine(f"{name}.skip_connection", lambda net: where(net).skip, _CONV1X1)


def _attention(name: str, where: Callable, block: AttentionBlock) -> Iterator[Entry]:
    heads = block.num_heads
    yield from _affine(f"{name}.norm", lambda net: where(net).norm)
    yield from _affine(
        f"{name}.qkv", lambda net: where(net).qkv, _qkv_weight(heads), _qkv_bias(heads)
    )
    yield from _affine(f"{name}.proj_out", lambda net: where(net).out, _CONV1D)


def _resample(name: str, where: Callable, block: Downsample | Upsample) -> Iterator[Entry]:
    if block.conv is not None:
        yield from _affine(name, lambda net: where(net).conv, _CONV)


def _block_at(part: str, i: int, j: int) -> tuple[Callable, Callable]:
    # Where a residual block and its attention live; a function, so that each pair keeps its i, j.
    return (
        lambda net: getattr(net, part)[i].blocks[j],
        lambda net: getattr(net, part)[i].attentions[j],
    )


def _resample_at(part: str, i: int) -> Callable:
    return lambda net: getattr(net, part)[i].resample


def _encoder(net: UNet) -> Iterator[Entry]:
    # `input_blocks` counts the first convolution, every residual block, and every downsampling.
    yield from _affine("input_blocks.0.0", lambda net: net.conv_in, _CONV)
    number = 1
    for i, level in enumerate(net.encoder):
        for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
            at_block, at_attention = _block_at("encoder", i, j)
            yield from _res_block(f"input_blocks.{number}.0", at_block, block)
            if attention is not None:
                yield from _attention(f"input_blocks.{number}.1", at_attention, attention)
            number += 1
        if level.resample is not None:
            where = _resample_at("encoder", i)
            yield from _resample(f"input_blocks.{number}.0.op", where, level.resample)
            number += 1


def _decoder(net: UNet) -> Iterator[Entry]:
    # `output_blocks` counts residual blocks only: upsampling is the last part of a level's last one.
    number = 0
    for i, level in enumerate(net.decoder):
        for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
            at_block, at_attention = _block_at("decoder", i, j)
            yield from _res_block(f"output_blocks.{number}.0", at_block, block)
            if attention is not None:
                yield from _attention(f"output_blocks.{number}.1", at_attention, attention)
            number += 1
        if level.resample is not None:
            part = 1 if level.attentions[-1] is None else 2
            name = f"output_blocks.{number - 1}.{part}.conv"
            yield from _resample(name, _resample_at("decoder", i), level.resample)


def _entries(net: UNet) -> list[Entry]:
    """Every parameter of `net`, in the order of the official state dict."""
    entries = list(_affine("time_embed.0", lambda net: net.time_embedding.linear1, _LINEAR))
    entries += _affine("time_embed.2", lambda net: net.time_embedding.linear2, _LINEAR)
    if net.class_embedding is not None:
        entries.append(("label_emb.weight", lambda net: net.class_embedding.weight, _SAME))
    entries += _encoder(net)
    middle = net.middle
    entries += _res_block("middle_block.0", lambda net: net.middle.before, middle.before)
    entries += _attention("middle_block.1", lambda net: net.middle.attention, middle.attention)
    entries += _res_block("middle_block.2", lambda net: net.middle.after, middle.after)
    entries += _decoder(net)
    entries += _affine("out.0", lambda net: net.norm_out)
    entries += _affine("out.2", lambda net: net.conv_out, _CONV)
    return entries


# Official keyword arguments of `UNetModel` and ours; `None` where the official one has no meaning
# here (`dims` must be 2).
_ARGUMENTS = {
    "in_channels": "in_channels",
    "model_channels": "channels",
    "out_channels": "out_channels",
    "num_res_blocks": "num_res_blocks",
    "attention_resolutions": "attention_downsamples",
    "dropout": "dropout",
    "channel_mult": "channel_mult",
    "conv_resample": "conv_resample",
    "dims": None,
    "num_classes": "num_classes",
    "use_checkpoint": "remat",
    "num_heads": "num_heads",
    "num_heads_upsample": "num_heads_upsample",
    "use_scale_shift_norm": "scale_shift_norm",
}

# The official defaults, where ours differ; the first four have none there.
_DEFAULTS = {"channel_mult": (1, 2, 4, 8), "num_heads": 1, "use_scale_shift_norm": False}
_REQUIRED = (
    "in_channels",
    "model_channels",
    "out_channels",
    "num_res_blocks",
    "attention_resolutions",
)


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(_ARGUMENTS))
    missing = [name for name in _REQUIRED if name not in config]
    if unknown or missing:
        raise ValueError(
            "config must hold the keyword arguments of improved-diffusion's UNetModel; "
            f"unknown: {unknown}, missing: {missing}. Known are {sorted(_ARGUMENTS)}."
        )
    if config.get("dims", 2) != 2:
        raise ValueError(f"only images are supported: expected dims=2, got dims={config['dims']}.")
    arguments = {**_DEFAULTS, **config}
    # The official code writes "same as num_heads" as −1.
    if arguments.get("num_heads_upsample") == -1:
        arguments["num_heads_upsample"] = None
    for name in ("channel_mult", "attention_resolutions"):
        arguments[name] = tuple(arguments[name])
    return {
        ours: arguments[name] for name, ours in _ARGUMENTS.items() if ours and name in arguments
    }


def _check_names(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"missing {name} {expected[name]}" for name in expected if name not in given]
    problems += [f"unexpected {name} {given[name]}" for name in given if name not in expected]
    problems += [
        f"{name} has shape {given[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if problems:
        raise ValueError(
            f"the weights do not fit this UNet ({len(problems)} problems); is `config` the one "
            "they were trained with?\n  " + "\n  ".join(problems)
        )


def improved_diffusion_unet(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> UNet:
    """Our `UNet` with the weights of an official improved-diffusion `UNetModel`.

    ```python
    state_dict = {k: v.numpy() for k, v in torch.load("cifar10.pt", weights_only=True).items()}
    net = eqdiff.interop.improved_diffusion_unet(state_dict, config)
    ```

    **Arguments:**

    - `state_dict`: official names and arrays, as `UNetModel.state_dict()` has them (convolutions
        `(out, in, height, width)`); anything that NumPy turns into arrays.
    - `config`: the keyword arguments of the official `UNetModel`: `in_channels`, `model_channels`,
        `out_channels`, `num_res_blocks`, `attention_resolutions` (as factors of downsampling, as
        there), and where they differ from its defaults `dropout`, `channel_mult`, `conv_resample`,
        `num_classes`, `use_checkpoint`, `num_heads`, `num_heads_upsample`, `use_scale_shift_norm`.
    - `compute_dtype`: as for [`eqdiff.nn.UNet`][].

    **Returns:** an [`eqdiff.nn.UNet`][] with float32 parameters.

    **Raises:** `ValueError` that lists every missing, unexpected and mis-shaped weight by name, or
    the keys of `config` that are missing or unknown.
    """
    arguments = _arguments(config)
    # The network's structure without its numbers: nothing is drawn only to be overwritten.
    skeleton = eqx.filter_eval_shape(
        lambda key: UNet(**arguments, compute_dtype=compute_dtype, key=key), jax.random.key(0)
    )
    entries = _entries(skeleton)
    arrays = {name: np.asarray(array) for name, array in state_dict.items()}
    expected = {
        name: layout.to_official(np.broadcast_to(np.float32(0), where(skeleton).shape)).shape
        for name, where, layout in entries
    }
    _check_names(expected, {name: array.shape for name, array in arrays.items()})
    leaves = [
        jnp.asarray(np.ascontiguousarray(layout.to_ours(arrays[name])), jnp.float32)
        for name, _, layout in entries
    ]
    return eqx.tree_at(lambda net: [where(net) for _, where, _ in entries], skeleton, leaves)


def improved_diffusion_super_resolution(
    state_dict: Mapping[str, Any], config: Mapping[str, Any], *, compute_dtype: Any = jnp.float32
) -> SuperResolution:
    """An official improved-diffusion `SuperResModel`: our `UNet` that also sees a low-resolution image.

    Its weights are those of a `UNetModel` with twice the `in_channels`.

    **Arguments:**

    - `state_dict`, `compute_dtype`: as for [`eqdiff.interop.improved_diffusion_unet`][].
    - `config`: the keyword arguments of the official `SuperResModel`, as there; `in_channels` counts
        those of $x$ alone.

    **Returns:** an [`eqdiff.nn.SuperResolution`][], whose `args` is the low-resolution image, or the pair
    of it and a class. (The official keyword arguments are `low_res` and `y`.)

    **Raises:** as there.
    """
    doubled = {k: 2 * v if k == "in_channels" else v for k, v in config.items()}
    return SuperResolution(
        improved_diffusion_unet(state_dict, doubled, compute_dtype=compute_dtype)
    )


def improved_diffusion_state_dict(net: UNet | SuperResolution) -> dict[str, np.ndarray]:
    """The weights of a `UNet` under their official names: the inverse of `improved_diffusion_unet`.

    Also names gradients, or an EMA, where those have the structure of the network.

    **Arguments:**

    - `net`: an [`eqdiff.nn.UNet`][], or an [`eqdiff.nn.SuperResolution`][] of one.

    **Returns:** official names and arrays in the official layout, in the official order, for
    `UNetModel.load_state_dict({k: torch.from_numpy(v) for k, v in ...})`.
    """
    unet: Any = net.net if isinstance(net, SuperResolution) else net
    return {
        name: np.ascontiguousarray(layout.to_official(np.asarray(where(unet))))
        for name, where, layout in _entries(unet)
    }
