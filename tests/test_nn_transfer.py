"""Weights of one network in another: what was copied computes the same, the rest is its own."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_serialise import filled

import eqdiff as eqd


def mlp(num_classes: int, depth: int = 2) -> Any:
    return filled(
        lambda key: eqd.nn.MLP(2, 2, width=8, depth=depth, num_classes=num_classes, key=key)
    )


def test_other_classes_change_the_table_alone(getkey):
    source = mlp(3)
    target = jax.tree.map(lambda a: a + 1, mlp(5))
    net, report = eqd.nn.transfer(source, target)
    assert report.fresh == report.unused == ("class_embedding.weight",)
    # With the rows of the old table, both networks are one function.
    table = net.class_embedding.weight
    np.testing.assert_array_equal(table, target.class_embedding.weight)
    table = table.at[:3].set(source.class_embedding.weight)
    net = eqx.tree_at(lambda n: n.class_embedding.weight, net, table)
    x = jax.random.normal(getkey(), (2,), jnp.float32)
    for label in range(3):
        np.testing.assert_array_equal(net(0.3, x, label), source(0.3, x, label))


def test_a_deeper_network_keeps_its_own_blocks():
    source, target = mlp(3), jax.tree.map(lambda a: a + 1, mlp(3, depth=3))
    net, report = eqd.nn.transfer(source, target)
    assert report.fresh and all(name.startswith("blocks.2.") for name in report.fresh)
    assert report.unused == ()
    assert eqx.tree_equal(net.blocks[:2], source.blocks)
    assert eqx.tree_equal(net.blocks[2], target.blocks[2])


def test_a_network_of_another_precision_stays_so():
    target = jax.tree.map(lambda a: a.astype(jnp.bfloat16), mlp(3))
    net, report = eqd.nn.transfer(mlp(3), target)
    assert report.fresh == report.unused == ()
    assert net.linear_in.weight.dtype == jnp.bfloat16


def test_weights_are_not_read_with_other_frequencies():
    shape = eqd.nn.UNetShape(1, 1, 8, 1, (1,), ())
    embed = eqd.nn.embeddings.score_sde(eqd.nn.embeddings.Fourier(2, 16.0))
    other = dataclasses.replace(embed, time=eqd.nn.embeddings.Fourier(2, 4.0))
    style = eqd.nn.styles.ncsnpp()

    def unet(embed):
        return filled(lambda key: eqd.nn.UNet(shape, style, embed, key=key))

    assert eqd.nn.transfer(unet(embed), unet(embed))[1].fresh == ()
    _, report = eqd.nn.transfer(unet(embed), unet(other))
    assert report.fresh == ("time_embedding.linear1.weight", "time_embedding.linear1.bias")


def test_networks_that_share_nothing():
    with pytest.raises(ValueError, match="no parameter of the same name and shape"):
        eqd.nn.transfer(eqd.nn.Centred(mlp(3)), mlp(3))
