"""Statistics of real images in files, as papers publish them.

The common form is an npz with a mean `mu` and a covariance `sigma` (Heusel et al. 2017). Reference
batches of guided-diffusion have these, `mu_s` and `sigma_s` of spatial features (sFID), and 10,000
images besides; score_sde keeps the features of all images, `pool_3`.
"""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from .._atomic import write_whole
from ._moments import arrays, from_arrays, Moments


# What files hold where they have features instead of their moments: score_sde's, and clean-fid's
# for KID.
_FEATURES = ("pool_3", "feats")
_KNOWN = ("num", "features", "size")


def read_moments(path: str | os.PathLike, names: tuple[str, str] = ("mu", "sigma")) -> Moments:
    """Reads the mean and covariance of features from an npz file.

    ```python
    reference = eqd.metrics.read_moments("VIRTUAL_imagenet256_labeled.npz")
    spatial = eqd.metrics.read_moments("VIRTUAL_imagenet256_labeled.npz", ("mu_s", "sigma_s"))
    ```

    **Arguments:**

    - `path`: of a file by [`eqdiff.metrics.write_moments`][], TTUR, pytorch-fid, EDM,
        clean-fid or guided-diffusion; or one with the features of all images, as score_sde's.
    - `names`: what the two are called in it.

    **Returns:** [`eqdiff.metrics.Moments`][]. Published files do not say of which feature network
    and how many images they are: `dataclasses.replace(moments, features=…, size=…)` adds what is
    known.

    **Raises:** `ValueError` for any other file. Pickles are never loaded.

    **Example:**

    ```python
    moments = eqd.metrics.Moments.of(jax.random.normal(jax.random.key(0), (100, 8)))
    eqd.metrics.write_moments("reference.npz", moments)
    assert eqd.metrics.read_moments("reference.npz").digest == moments.digest
    ```
    """
    stored, found = read_arrays(path, *names, *_KNOWN, *_FEATURES)
    if all(name in stored for name in names):
        return from_arrays(stored, names)
    for name in _FEATURES:
        if name in stored and names == ("mu", "sigma"):
            return Moments.of(stored[name])
    raise ValueError(
        f"{path} has no {' and '.join(names)}, but {', '.join(found)}: expected statistics. Those "
        "of images are Moments.of(extract(features, images), features=features.name)."
    )


def write_moments(path: str | os.PathLike, moments: Moments) -> None:
    """Writes the mean and covariance of features as an npz file that others read too.

    `mu` and `sigma` in float64 and, where known, `num`, `features` and `size`. The file appears
    whole or not at all.

    **Arguments:** `path`, which ends in `.npz`, and `moments`.

    **Raises:** `ValueError` for another ending.

    **Example:**

    ```python
    moments = eqd.metrics.Moments.of(jax.random.normal(jax.random.key(0), (100, 8)))
    eqd.metrics.write_moments("reference.npz", moments)
    ```
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"write_moments: {path}: expected a name that ends in .npz")
    stored: Any = arrays(moments)
    write_whole(path, lambda file: np.savez(file, **stored))


def read_arrays(
    path: str | os.PathLike, *names: str
) -> tuple[dict[str, Shaped[np.ndarray, "..."]], list[str]]:
    """Those of some arrays that an npz file has, and the names of all; never a pickle."""
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, without a name")
            return {n: stored[n] for n in names if n in stored.files}, stored.files
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"cannot read {path} ({error}): expected an npz file of plain arrays; pickles are not "
            "loaded."
        ) from error
