r"""How images reach the size of a feature network, as three published codes do it.

Each is linear and separable: with a matrix for rows and one for columns,

$$y = R\,x\,C^\top, \qquad R \in \mathbb{R}^{H \times h},\ C \in \mathbb{R}^{W \times w}. \tag{1}$$

They differ in where the centre of output pixel $i$ lies among the input's, for $s = h/H$,

$$u_i = s\,i \ \ \text{(TensorFlow 1)}, \qquad
  u_i = s\,(i + \tfrac12) - \tfrac12 \ \ \text{(PyTorch, Pillow)}, \tag{2}$$

in the kernel around it, bilinear or bicubic, and in whether that kernel widens by $s$ where an
image becomes smaller, which is antialiasing; Pillow alone does. The same samples differ by several
units of FID between them (Parmar et al. 2022, *On Aliased Resizing and Surprising Subtleties in
GAN Evaluation*, CVPR), so that a Fréchet distance is only comparable with one of the same kind.

How 8-bit values become numbers around zero belongs to each code, too: $(x - 128)/128$ in
TensorFlow's graph and what follows it, $2x/255 - 1$ in pytorch-fid.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped, UInt8

from ._features import to_uint8


class AbstractResize(eqx.Module):
    """Resizes an 8-bit image and scales it to about [-1, 1].

    **Fields:**

    - `name`: kept with statistics of features as a part of theirs.
    """

    name: eqx.AbstractVar[str]

    @abc.abstractmethod
    def __call__(
        self, image: UInt8[Array, "channels height width"], size: tuple[int, int]
    ) -> Float32[Array, "channels new_height new_width"]:
        """The image in another size.

        **Arguments:**

        - `image`: one image.
        - `size`: the height and width wanted.

        **Returns:** float32, scaled.
        """


class TensorFlowBilinear(AbstractResize):
    r"""Bilinear as in TensorFlow 1, and $(x - 128)/128$: equation (2), left, no antialiasing.

    What the graph of 2015 itself does, and so the Fréchet distances of Heusel et al. (2017), of
    guided-diffusion's evaluator (ADM) and of EDM, and torch-fidelity's. Images are shifted by half
    a pixel of the smaller grid.

    **Example:**

    ```python
    resize = eqd.metrics.TensorFlowBilinear()  # the `resize` of eqd.metrics.inception_v3
    x = resize(jnp.zeros((3, 32, 32), jnp.uint8), (299, 299))
    ```
    """

    name: str = eqx.field(default="tensorflow-bilinear", static=True, init=False)

    def __call__(
        self, image: UInt8[Array, "channels height width"], size: tuple[int, int]
    ) -> Float32[Array, "channels new_height new_width"]:
        x = _resized(image.astype(jnp.float32), size, _tensorflow)
        return (x - 128) / 128


class PyTorchBilinear(AbstractResize):
    r"""Bilinear as in PyTorch, and $2x/255 - 1$: equation (2), right, no antialiasing.

    `torch.nn.functional.interpolate(…, mode="bilinear", align_corners=False)`, as in pytorch-fid.

    **Example:**

    ```python
    resize = eqd.metrics.PyTorchBilinear()  # the `resize` of eqd.metrics.inception_v3
    x = resize(jnp.zeros((3, 32, 32), jnp.uint8), (299, 299))
    ```
    """

    name: str = eqx.field(default="pytorch-bilinear", static=True, init=False)

    def __call__(
        self, image: UInt8[Array, "channels height width"], size: tuple[int, int]
    ) -> Float32[Array, "channels new_height new_width"]:
        return 2 * _resized(image.astype(jnp.float32) / 255, size, _pytorch) - 1


class PillowBicubic(AbstractResize):
    r"""Bicubic as in Pillow, and $(x - 128)/128$: equation (2), right, with antialiasing.

    Each channel is resized as 32-bit floats, clipped to [0, 255] and not rounded, as in clean-FID
    (Parmar et al. 2022). The kernel is Keys's with $a = -\tfrac12$.

    **Example:**

    ```python
    resize = eqd.metrics.PillowBicubic()  # the `resize` of eqd.metrics.inception_v3
    x = resize(jnp.zeros((3, 32, 32), jnp.uint8), (299, 299))
    ```
    """

    name: str = eqx.field(default="pillow-bicubic", static=True, init=False)

    def __call__(
        self, image: UInt8[Array, "channels height width"], size: tuple[int, int]
    ) -> Float32[Array, "channels new_height new_width"]:
        return (bicubic(image, size) - 128) / 128


def bicubic(
    image: UInt8[Array, "channels height width"], size: tuple[int, int]
) -> Float32[Array, "channels new_height new_width"]:
    """Pillow's bicubic resizing, in grey levels."""
    return jnp.clip(_resized(image.astype(jnp.float32), size, _pillow), 0, 255)


def three_channels(
    image: Shaped[Array, "channels height width"], network: str
) -> UInt8[Array, "3 height width"]:
    """An image as networks of photographs take it: of 8 bits, grey in all three channels.

    **Raises:** `ValueError` for neither one nor three channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"{network} got an image of shape {image.shape}, expected (1, height, width) or "
            "(3, height, width)."
        )
    return jnp.broadcast_to(to_uint8(image), (3, *image.shape[1:]))


def _resized(image, size, matrix):
    # Columns first, as Pillow does: what lies between is rounded to float32 as there.
    height, width = image.shape[1:]
    highest = jax.lax.Precision.HIGHEST
    columns, rows = matrix(width, size[1]), matrix(height, size[0])
    x = jnp.einsum("chw,jw->chj", image, columns, precision=highest)
    return jnp.einsum("chj,ih->cij", x, rows, precision=highest)


def _tensorflow(old: int, new: int) -> np.ndarray:
    # In float32, as there, which decides the last bit of each weight.
    scale = np.float32(old) / np.float32(new)
    return _bilinear(np.arange(new, dtype=np.float32) * scale, old)


def _pytorch(old: int, new: int) -> np.ndarray:
    half = np.float32(0.5)
    scale = np.float32(old) / np.float32(new)
    centres = scale * (np.arange(new, dtype=np.float32) + half) - half
    return _bilinear(np.maximum(centres, 0), old)


def _bilinear(centres: np.ndarray, old: int) -> np.ndarray:
    """Weights of the two neighbours; beyond the last pixel there is only that."""
    low = np.minimum(centres.astype(int), old - 1)
    high = np.minimum(low + 1, old - 1)
    share = centres - low.astype(np.float32)
    weights = np.zeros((len(centres), old), np.float32)
    rows = np.arange(len(centres))
    weights[rows, low] += 1 - share
    weights[rows, high] += share
    return weights


def _pillow(old: int, new: int) -> np.ndarray:
    scale = old / new
    width = max(scale, 1.0)
    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * scale
        # The pixels whose centres Pillow counts as inside of the kernel's support of ±2.
        first = max(int(centre - 2 * width + 0.5), 0)
        last = min(int(centre + 2 * width + 0.5), old)
        weights[row, first:last] = _cubic((np.arange(first, last) - centre + 0.5) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic(u: np.ndarray) -> np.ndarray:
    u, a = np.abs(u), -0.5
    near = ((a + 2) * u - (a + 3)) * u**2 + 1
    far = (((u - 5) * u + 8) * u - 4) * a
    return np.where(u < 1, near, np.where(u < 2, far, 0.0))
