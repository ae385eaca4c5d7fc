r"""The features of FID: Inception-v3 as TensorFlow published it on 2015-12-05.

For an image $x$ of 299×299 pixels, $f(x)$ is the average over 8×8 places of the last block, 2048
numbers (`pool_3`). The Fréchet distance with these features is FID (Heusel et al. 2017); Inception
Scores (Salimans et al. 2016) are of the probabilities

$$p(k \mid x) = \operatorname{softmax}(W f(x))_k, \qquad W \in \mathbb{R}^{1008 \times 2048},
  \tag{1}$$

*without* the graph's bias, which their code left out and all later code with it. sFID (Nash et al.
2021) compares the first 7 channels at 17×17 places of an earlier block, $7 \cdot 17^2 = 2023$
numbers (`mixed_6/conv`).

**What must agree for two numbers to be comparable**: the weights, the resizing
([`eqdiff.metrics.TensorFlowBilinear`][] for numbers as in ADM, EDM and the original code), the
rounding of samples to 8 bits, the number of samples (FID is biased by it), and the reference.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Shaped

from .._torch_file import read_torch, state_dict
from ._conv_net import Arrays, Chain, Parallel
from ._features import AbstractFeatures
from ._inception_blocks import Average, block_a, block_b, block_c, block_d, block_e, Maximum, stem
from ._resize import AbstractResize, TensorFlowBilinear, three_channels
from ._weight_file import checked, digest_of_arrays, fetch, find, Published, torch_hub


_SIZE = (299, 299)
_SPATIAL = 7
# The graph's epsilon of batch normalisation.
_EPS = 1e-3
_FILE = Published(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
# What torch-fidelity calls the same file.
_OTHER_NAME = "weights-inception-2015-12-05-6726825d.pth"


class InceptionV3(AbstractFeatures):
    """FID's network, made by [`eqdiff.metrics.inception_v3`][].

    It maps an image, uint8 or floats in [-1, 1] of any size, to 2048 features. Grey images are
    repeated to three channels.

    **Fields:**

    - `resize`: how images become 299×299 pixels.
    - `weights`: which weights these are: `"2015-12-05"`, or the digest of others.
    - `early`, `spatial_block`, `late`: the network's parts.
    - `logits`: the matrix of equation (1).

    **Example:**

    ```python
    net = eqd.metrics.inception_v3()  # an eqd.metrics.InceptionV3
    probabilities = net.probabilities(net(jnp.zeros((3, 32, 32))))
    ```
    """

    resize: AbstractResize
    weights: str = eqx.field(static=True)
    early: Chain
    spatial_block: Parallel
    late: Chain
    logits: Float32[Array, "2048 1008"]

    @property
    def name(self) -> str:
        """`inception-v3`, the weights and the resizing, as kept with statistics."""
        return f"inception-v3 {self.weights} {self.resize.name}"

    def __call__(self, image: Shaped[Array, "channels height width"]) -> Float32[Array, "2048"]:
        """The features $f(x)$ of one image."""
        return self.pool(self.prepare(image))

    def prepare(self, image: Shaped[Array, "channels height width"]) -> Float32[Array, "299 299 3"]:
        """What the network sees of an image: 8 bits, three channels, 299×299 pixels, scaled."""
        x = three_channels(image, "InceptionV3")
        return jnp.moveaxis(self.resize(x, _SIZE), 0, -1)

    def pool(self, x: Float32[Array, "height width 3"]) -> Float32[Array, "2048"]:
        """The features of what was prepared already."""
        return jnp.mean(self.late(self.spatial_block(self.early(x))), axis=(0, 1))

    def spatial(self, image: Shaped[Array, "channels height width"]) -> Float32[Array, "2023"]:
        """The features of sFID, of one image: `extract(net.spatial, images)`."""
        first = self.spatial_block.branches[0]
        return first(self.early(self.prepare(image)))[..., :_SPATIAL].reshape(-1)

    def probabilities(self, pool: Float[Array, "*n 2048"]) -> Float32[Array, "*n 1008"]:
        """The probabilities (1) of features, of one image or many."""
        x = jnp.asarray(pool, jnp.float32)
        return jax.nn.softmax(jnp.matmul(x, self.logits, precision=jax.lax.Precision.HIGHEST))


def inception_v3(
    weights: str | os.PathLike | Mapping[str, Any] | None = None,
    *,
    resize: AbstractResize = TensorFlowBilinear(),
    download: bool = True,
    progress: bool = True,
) -> InceptionV3:
    """FID's Inception-v3 with the published weights.

    ```python
    net = eqd.metrics.inception_v3()
    fid = eqd.metrics.frechet_distance(eqd.metrics.extract(net, samples), reference)
    ```

    The weights are those of pytorch-fid, `pt_inception-2015-12-05-6726825d.pth` (96 MB), which were
    converted from TensorFlow's graph. They are looked for in `eqdiff` of the user's cache directory
    and where `torch.hub` puts them (pytorch-fid's and torch-fidelity's names), and else downloaded.
    Their SHA-256 is checked, and they are read without PyTorch and without Python's unpickler.

    **Arguments:**

    - `weights`: the path of that file; or the names and arrays of other weights for the same
        network, whose statistics then carry their digest.
    - `resize`: [`eqdiff.metrics.TensorFlowBilinear`][] as in ADM, EDM and the original FID,
        [`eqdiff.metrics.PyTorchBilinear`][] as in pytorch-fid, [`eqdiff.metrics.PillowBicubic`][]
        as in clean-FID.
    - `download`: whether to fetch the file if it is not found.
    - `progress`: whether to show a bar while it comes.

    **Returns:** an [`eqdiff.metrics.InceptionV3`][].

    **Raises:** `FileNotFoundError` without the file; `ValueError` for another one;
    [`eqdiff.data.DownloadError`][] if it cannot be had.

    **Example:**

    ```python
    net = eqd.metrics.inception_v3()
    features = eqd.metrics.extract(net, jnp.zeros((100, 3, 32, 32)))  # (100, 2048)
    ```

    ??? cite "Reference"

        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium*, 2017; Seitzer, *pytorch-fid: FID Score for PyTorch*, 2020.
    """
    if isinstance(weights, Mapping):
        return _build(weights, "the state dict", digest_of_arrays(weights), resize)
    path = _file(weights, download, progress)
    return _build(state_dict(read_torch(path), str(path)), str(path), "2015-12-05", resize)


def _file(path: str | os.PathLike | None, download: bool, progress: bool) -> Path:
    if path is not None:
        return checked(path, _FILE)
    hub = torch_hub()
    found = find(_FILE, (hub / _FILE.name, hub / _OTHER_NAME))
    if found is None and not download:
        raise FileNotFoundError(
            f"there is no undamaged {_FILE.name} in eqdiff's cache directory or in {hub}: give its "
            f"path, or download it from {_FILE.url}."
        )
    return fetch(_FILE, progress=progress) if found is None else found


def _build(
    named: Mapping[str, Any], source: str, weights: str, resize: AbstractResize
) -> InceptionV3:
    arrays = Arrays(named, source, _EPS)
    early = (
        stem(arrays),
        block_a(arrays, "Mixed_5b", 192, 32),
        block_a(arrays, "Mixed_5c", 256, 64),
        block_a(arrays, "Mixed_5d", 288, 64),
        block_b(arrays, "Mixed_6a"),
        block_c(arrays, "Mixed_6b", 128),
        block_c(arrays, "Mixed_6c", 160),
    )
    spatial_block = block_c(arrays, "Mixed_6d", 160)
    late = (
        block_c(arrays, "Mixed_6e", 192),
        block_d(arrays, "Mixed_7a"),
        block_e(arrays, "Mixed_7b", 1280, Average()),
        block_e(arrays, "Mixed_7c", 2048, Maximum(1, "SAME")),
    )
    logits = arrays.take("fc.weight", 1008, 2048)
    # Not used: see equation (1).
    arrays.take("fc.bias", 1008)
    arrays.finish()
    return InceptionV3(  # pyright: ignore[reportCallIssue] (`name` is a property)
        resize=resize,
        weights=weights,
        early=Chain(early),
        spatial_block=spatial_block,
        late=Chain(late),
        logits=jnp.asarray(np.transpose(logits), jnp.float32),
    )
