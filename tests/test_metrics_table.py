"""A table of pixels against counting by hand, and as a distribution."""

import itertools

import jaxtyping
import numpy as np
import pytest

import eqdiff as eqd


def test_it_is_a_distribution_and_counts():
    """Over all images of three levels and two pixels its probabilities add up to one."""
    rng = np.random.RandomState(0)
    train = rng.choice([-1.0, 0.0, 1.0], (7, 1, 2), p=[0.6, 0.3, 0.1])
    every = np.array(list(itertools.product([-1.0, 0.0, 1.0], repeat=2)))[:, None]
    bits = [eqd.metrics.table_bits((train, None), (x[None], None), levels=3).value for x in every]
    assert np.isclose(np.sum(2.0 ** (-2 * np.array(bits))), 1, rtol=1e-12)
    first, second = (np.sum(train[:, 0, i] == -1) for i in (0, 1))
    truth = -np.log2((first + 0.5) / 8.5 * (second + 0.5) / 8.5) / 2
    assert np.isclose(bits[0], truth, rtol=1e-12)


def test_it_has_a_table_for_each_class():
    """Classes that differ cost less with a table each; the same images without classes, more."""
    data = eqd.data.digits()
    x, labels = data.train.take(np.arange(len(data.train)))
    train, (test, wanted) = data.normalise(x), data.held_out()
    with_classes = eqd.metrics.table_bits((train, labels), (test, wanted), levels=17)
    without = eqd.metrics.table_bits((train, None), (test, None), levels=17)
    assert with_classes.num == 300 and with_classes.value < without.value - 0.2
    alone = [
        eqd.metrics.table_bits((train[labels == c], None), (test[wanted == c], None), levels=17)
        for c in range(10)
    ]
    total = sum(m.value * m.num for m in alone) / 300
    assert np.isclose(with_classes.value, total, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(labels=np.zeros(2, int)), "both"),
        (dict(images=np.zeros((2, 1, 3))), "same shape"),
        (dict(images=np.full((2, 1, 2), 0.4)), "grid of 3 levels"),
        (dict(images=np.full((2, 1, 2), 2.0)), "grid of 3 levels"),
        (dict(train_labels=np.zeros(4, int), labels=np.ones(2, int)), "the label 1"),
        (dict(train_labels=np.zeros(3, int), labels=np.zeros(2, int)), "each image"),
    ],
)
def test_bad_input(change, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = dict(images=np.zeros((2, 1, 2)), train_labels=None, labels=None) | change
    train, test = (np.zeros((4, 1, 2)), given["train_labels"]), (given["images"], given["labels"])
    with pytest.raises(ValueError, match=words):
        eqd.metrics.table_bits(train, test, levels=3)
