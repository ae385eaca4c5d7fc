r"""EDM's augmentation: geometric changes of images, and nine numbers that describe them.

Each change happens with probability $p$ (times its own factor); where it does not, its
parameters are zero. With $n, n' \sim N(0, 1)$ and $u \sim U(-1, 1)$,

| change | parameters |
|---|---|
| mirrored left to right, with probability one half whatever $p$ | 1 |
| mirrored upside down, half the time | 1 |
| scaled by $2^{0.2 n}$ | $n$ |
| turned anticlockwise by $\pi u$ | $\cos \pi u - 1,\ \sin \pi u$ |
| stretched by $2^{0.2 n}$ along an axis at $r$, shrunk across it | $n \cos r,\ n \sin r$ |
| moved by $n$ and $n'$ eighths of the width and the height | $n,\ n'$ |

where $r$ is 0 in half of the cases and $\pi u$ in the others. All is as in the official code, but
for the margin of an image, which there depends on its batch. (There as here $(n, r)$ and $(-n, r +
\pi)$ have the same parameters.)
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, Int

from ._augment import AbstractAugmentation
from ._geometry import transform
from ._stream import uniforms


_SCALE, _STRETCH, _MOVE = 0.2, 0.2, 0.125
_SIZE = 9


def _normal(
    u: Float64[np.ndarray, " batch"], v: Float64[np.ndarray, " batch"]
) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"]]:
    """Two standard normals of two uniforms (Box & Muller 1958)."""
    radius = np.sqrt(-2 * np.log(u))
    return radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)


def _matrices(
    *rows: tuple[Float64[np.ndarray, " batch"] | float, ...],
) -> Float64[np.ndarray, "batch 3 3"]:
    entries = np.broadcast_arrays(*(entry for row in rows for entry in row))
    return np.stack(entries, axis=-1).reshape(-1, 3, 3)


def _turn(angle: Float64[np.ndarray, " batch"]) -> Float64[np.ndarray, "batch 3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return _matrices((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))


def _scale(
    x: Float64[np.ndarray, " batch"], y: Float64[np.ndarray, " batch"]
) -> Float64[np.ndarray, "batch 3 3"]:
    return _matrices((x, 0.0, 0.0), (0.0, y, 0.0), (0.0, 0.0, 1.0))


def _move(
    x: Float64[np.ndarray, " batch"], y: Float64[np.ndarray, " batch"]
) -> Float64[np.ndarray, "batch 3 3"]:
    return _matrices((1.0, 0.0, x), (0.0, 1.0, y), (0.0, 0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class EDMAugmentation(AbstractAugmentation):
    """The non-leaking augmentation of EDM, for images: build the network with `augment_size=9`.

    A network without classes takes `eqd.nn.Conditions(None, args.augment)`. To sample give no
    `augment`, which means zeros: images as the data are.

    **Arguments:**

    - `p`: the probability of each change: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ.
    - `x_flip`: the probability that an image is mirrored left to right, which does not depend on
        `p`; 0 where left and right differ. The loader's `horizontal_flip` is another matter: the
        network does not see it.
    - `y_flip`, `scale`, `turn`, `stretch`, `move`: factors of `p` for each of the changes.

    **Example:**

    ```python
    source, augment = eqd.data.digits().train, eqd.data.EDMAugmentation(0.12)
    batches = eqd.data.loader(source, 64, seed=0, augment=augment)
    images, args = next(batches)  # args.class_label (64,), args.augment (64, 9)
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, 2022,
        appendix F.2 and table 6.
    """

    p: float = 0.12
    x_flip: float = 0.5
    y_flip: float = 1.0
    scale: float = 1.0
    turn: float = 1.0
    stretch: float = 1.0
    move: float = 1.0

    @property
    def size(self) -> int:
        """The number of parameters: 9."""
        return _SIZE

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            least, most = 0, 1 if name in ("p", "x_flip") else np.inf
            if not least <= value <= most:
                raise ValueError(
                    f"{name}={value}: expected at least 0{' and at most 1' * (most == 1)}"
                )

    def check(self, shape: tuple[int, ...]) -> None:
        # Fewer pixels than the filter has to one side cannot be continued by reflection.
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(
                "EDMAugmentation changes images (channels, height, width) of at least 4x4 pixels, "
                f"got examples of shape {shape}"
            )

    def draw(
        self, shape: tuple[int, ...], *, seed: int, positions: Int[np.ndarray, " batch"]
    ) -> tuple[Float64[np.ndarray, "batch 3 3"], Float32[np.ndarray, "batch 9"]]:
        """The changes of a batch, before they are made.

        **Arguments:**

        - `shape`: `(channels, height, width)`.
        - `seed`, `positions`: as for `__call__`.

        **Returns:** where each pixel comes from, in pixels: homogeneous maps of `(x, y, 1)` about
        the centre of the image, without the mirror images; and the nine parameters.
        """
        height, width = shape[1:]
        draws = iter(uniforms(seed, positions, 16))

        def happens(factor):
            return next(draws) < factor * self.p

        flip_x = next(draws) < self.x_flip
        flip_y = happens(self.y_flip) & (next(draws) < 0.5)
        n = np.where(happens(self.scale), _normal(next(draws), next(draws))[0], 0.0)
        inverse = _scale(*[2.0 ** (-_SCALE * n)] * 2)
        angle = np.where(happens(self.turn), np.pi * (2 * next(draws) - 1), 0.0)
        inverse = inverse @ _turn(angle)
        along = np.where(happens(self.stretch), _normal(next(draws), next(draws))[0], 0.0)
        axis = np.where(next(draws) < 0.5, np.pi * (2 * next(draws) - 1), 0.0)
        factor = 2.0 ** (_STRETCH * along)
        inverse = inverse @ _turn(-axis) @ _scale(1 / factor, factor) @ _turn(axis)
        moves = happens(self.move)
        dx, dy = (np.where(moves, z, 0.0) for z in _normal(next(draws), next(draws)))
        inverse = inverse @ _move(-_MOVE * width * dx, -_MOVE * height * dy)
        parameters = [
            *(flip_x, flip_y, n, np.cos(angle) - 1, np.sin(angle)),
            *(along * np.cos(axis), along * np.sin(axis), dx, dy),
        ]
        return inverse, np.stack(parameters, axis=1).astype(np.float32)

    def __call__(
        self,
        x: Float32[np.ndarray, "batch channels height width"],
        *,
        seed: int,
        positions: Int[np.ndarray, " batch"],
    ) -> tuple[Float32[np.ndarray, "batch channels height width"], Float32[np.ndarray, "batch 9"]]:
        """Changes a batch: as [`eqdiff.data.AbstractAugmentation`][]'s."""
        inverse, parameters = self.draw(x.shape[1:], seed=seed, positions=positions)
        for image, row, matrix in zip(x, parameters, inverse, strict=True):
            changed = image
            if row[0]:
                changed = changed[..., ::-1]
            if row[1]:
                changed = changed[..., ::-1, :]
            # The identity would give every pixel back, to rounding.
            image[...] = transform(changed, matrix) if row[2:].any() else changed.copy()
        return x, parameters
