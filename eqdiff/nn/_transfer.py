"""Fine-tuning: the weights of one network as the start of another.

A network for other classes, channels or sizes has most of its parameters in common with the one
that was trained. Those are found by their names, such as `body.encoder.0.blocks.0.conv1.weight`,
and by their shapes; the others stay as the new network drew them.

Two of a network's choices are numbers that no shape shows, and weights mean nothing without them.
Fourier frequencies are compared: where they differ, the map that reads them is not copied. The
number of heads is not, since it is the user's to change.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._embed import TimeEmbedding


Net = TypeVar("Net", bound=eqx.Module)


class Transferred(NamedTuple):
    """The report of [`eqdiff.nn.transfer`][], by names of parameters.

    - `copied`: those that the new network took from the old one.
    - `fresh`: those of the new network that stay as they were initialised.
    - `unused`: those of the old network that were not used.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    _, report = eqd.nn.transfer(net, net)  # an eqd.nn.Transferred
    print(len(report.copied), report.fresh, report.unused)
    ```
    """

    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def transfer(source: eqx.Module, target: Net) -> tuple[Net, Transferred]:
    """Copies parameters from one network into another wherever name and shape agree.

    Another number of channels leaves the first and the last convolution fresh, another number of
    classes the embedding of classes, another size everything wider or deeper. Networks of different
    families share no names, which raises an error.

    **Arguments:**

    - `source`: the trained network, such as `denoiser.net`.
    - `target`: the new one, initialised.

    **Returns:** the new network, in its own precision, and an [`eqdiff.nn.Transferred`][] of the
    names that were copied, fresh and unused.

    **Raises:** `ValueError` where no parameter can be copied.

    **Example:**

    ```python
    trained = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    new = eqd.nn.MLP(2, 2, num_classes=5, key=jax.random.key(1))
    net, report = eqd.nn.transfer(trained, new)
    print(report.fresh)  # ('class_embedding.weight',)
    ```
    """
    old, new = dict(_parameters(source)), dict(_parameters(target))
    different = _other_frequencies(source, target)
    copied = tuple(
        name
        for name, array in new.items()
        if name in old and old[name].shape == array.shape and name not in different
    )
    if not copied:
        raise ValueError(
            f"transfer: a {type(source).__name__} and a {type(target).__name__} have no parameter "
            f"of the same name and shape, such as {next(iter(old), 'any')} and "
            f"{next(iter(new), 'any')}. If one is wrapped, give the network inside it."
        )
    kept = frozenset(copied)

    def filled(path: Any, leaf: Any) -> Any:
        name = _name(path)
        return old[name].astype(leaf.dtype) if name in kept else leaf

    fresh = tuple(name for name in new if name not in kept)
    unused = tuple(name for name in old if name not in kept)
    net = jax.tree_util.tree_map_with_path(filled, target)
    return net, Transferred(copied, fresh, unused)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _parameters(net: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(net)[0]:
        # NumPy arrays are constants of a network.
        if eqx.is_inexact_array(leaf) and not isinstance(leaf, np.ndarray):
            yield _name(path), jnp.asarray(leaf)


def _other_frequencies(source: Any, target: Any) -> set[str]:
    """The parameters that read Fourier frequencies, where both networks have other ones."""

    def readers(net: Any) -> dict[str, TimeEmbedding]:
        def is_reader(node: Any) -> bool:
            return isinstance(node, TimeEmbedding)

        leaves = jax.tree_util.tree_flatten_with_path(net, is_leaf=is_reader)[0]
        return {_name(path): leaf for path, leaf in leaves if is_reader(leaf)}

    old, new = readers(source), readers(target)
    names = [n for n in new if n in old and old[n].frequencies != new[n].frequencies]
    return {f"{name}.linear1.{part}" for name in names for part in ("weight", "bias")}
