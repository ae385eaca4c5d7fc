r"""Many samples.

Samplers draw one example. Here any number is drawn in chunks of one compiled, batched call, spread over a device mesh if one
is given. Sample $i$ depends on the key and on $i$ alone: not on the chunk size, the number of devices, or how many others
are drawn.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ._denoiser import AbstractDenoiser
from ._sampler import AbstractSampler
from ._types import Key


@eqx.filter_jit
def _draw(sampler, denoiser, shape, args, indices, key):
    def one(index, args):
        # Prior and path must not share a key.
        prior_key, path_key = jax.random.split(jax.random.fold_in(key, index))
        x1 = denoiser.process.prior_sample(shape, key=prior_key)
        return sampler(denoiser, x1, args, key=path_key)

    return jax.vmap(one)(indices, args)


def generate(
    sampler: AbstractSampler,
    denoiser: AbstractDenoiser,
    num: int,
    shape: tuple[int, ...],
    *,
    key: Key,
    args: PyTree[Any] = None,
    batch_size: int = 256,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "num ..."]:
    """Draws `num` samples of the given shape.

    **Arguments:**

    - `sampler`, `denoiser`: how, and of what.
    - `num`: how many.
    - `shape`: of one sample, for example `(3, 32, 32)`.
    - `key`: sample `i` is drawn from this key and `i`.
    - `args`: what conditions the network, with a leading axis of length `num`; or `None`.
    - `batch_size`: how many are drawn at once; memory grows with it.
    - `mesh`: a device mesh; each batch is split along the mesh's first axis, its size rounded up to fill all devices.
    - `progress`: shows a bar with rate and ETA (needs tqdm).

    **Returns:** a NumPy array of shape `(num, *shape)`.

    **Raises:** `ValueError` for `args` of another length than `num`, or numbers that are not positive.
    """
    if num < 1 or batch_size < 1:
        raise ValueError(f"generate: expected positive numbers, got {num=} and {batch_size=}.")
    for leaf in jax.tree.leaves(args):
        if np.shape(leaf)[:1] != (num,):
            raise ValueError(
                f"generate: args must have a leading axis of length num={num}, but a leaf has shape {np.shape(leaf)}."
            )
    batch_size = min(batch_size, num)
    devices = 1 if mesh is None else mesh.devices.size
    # One compiled shape: a short last batch is filled up with further indices, whose samples are dropped.
    batch_size = -(-batch_size // devices) * devices
    if mesh is not None:
        # Weights that sit on one device could not meet inputs that are spread over several.
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        arrays, rest = eqx.partition((sampler, denoiser, key), eqx.is_array)
        sampler, denoiser, key = eqx.combine(jax.device_put(arrays, everywhere), rest)
    samples = []
    starts = range(0, num, batch_size)
    for start in _bar(starts, num, batch_size) if progress else starts:
        indices = np.arange(start, start + batch_size)
        rows = np.minimum(indices, num - 1)
        # Not np.take: it would hand JAX arrays to jax.numpy, which has no such mode.
        batch = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], args)
        inputs = (batch, jnp.asarray(indices, jnp.uint32))
        if mesh is not None:
            spec = jax.sharding.PartitionSpec(mesh.axis_names[0])
            inputs = jax.device_put(inputs, jax.sharding.NamedSharding(mesh, spec))
        samples.append(np.asarray(_draw(sampler, denoiser, shape, inputs[0], inputs[1], key)))
    return np.concatenate(samples)[:num]


def _bar(starts: range, num: int, batch_size: int):
    from tqdm import tqdm

    with tqdm(total=num, unit="sample", desc="sampling") as bar:
        for start in starts:
            yield start
            bar.update(min(batch_size, num - start))
