"""Pairs of data and noise: exact, unbiased, resumable, and straighter flows."""

import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd


# At the end: examples have modules of the same names as some benchmarks.
sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import couplings


optimal_pairs = eqd.train.optimal_pairs


def cheapest(x0: np.ndarray, x1: np.ndarray) -> tuple[int, ...]:
    """By trying every permutation."""

    def cost(order):
        return np.sum((x0 - x1[list(order)]) ** 2)

    return min(itertools.permutations(range(len(x0))), key=cost)


@pytest.mark.parametrize("shape", [(1, 2), (6, 1), (6, 3), (5, 2, 2)])
def test_pairs_are_the_cheapest_of_all_permutations(shape):
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(3.0, 1.0, shape), rng.normal(size=shape)
    assert tuple(optimal_pairs(x0, jnp.asarray(x1))) == cheapest(x0, x1)


def test_pairs_of_numbers_are_their_sorted_order():
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(size=300), rng.normal(size=300)
    paired = x1[optimal_pairs(x0, x1)]
    np.testing.assert_array_equal(np.argsort(x0), np.argsort(paired))


def test_pairs_within_classes_are_the_cheapest_of_each():
    rng = np.random.default_rng(0)
    x0, x1, classes = rng.normal(size=(9, 2)), rng.normal(size=(9, 2)), np.arange(9) % 2
    order = optimal_pairs(x0, x1, classes=classes)
    for label in (0, 1):
        (among,) = np.nonzero(classes == label)
        np.testing.assert_array_equal(order[among], among[list(cheapest(x0[among], x1[among]))])
    assert not np.array_equal(order, optimal_pairs(x0, x1))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: optimal_pairs(x, x[:2]), "same shape"),
        (lambda x: optimal_pairs(x, x, classes=np.ones(2)), "one label"),
        (lambda x: optimal_pairs(x, 1 / (x - x[0])), "not finite"),
        (lambda x: optimal_pairs(x.astype(int), x), "floating-point"),
        (lambda x: optimal_pairs(x[0, 0], x[0, 0]), "a number"),
        (lambda x: jax.jit(lambda y: optimal_pairs(y, y))(x), "before the step"),
        (lambda x: eqd.train.OptimalNoise([], seed=-1), "whole number"),
        (lambda x: next(eqd.train.OptimalNoise([(x, x)], seed=0)), "within classes"),
        (lambda x: next(eqd.train.OptimalNoise([(x, {"a": 1})], seed=0)), "within classes"),
        (lambda x: eqd.train.OptimalNoise([], seed=0).set_state({"seed": 0}), "get_state"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_cannot_be_paired_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call(np.random.default_rng(0).normal(size=(3, 2)))


def batches(classes: bool):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)).astype(np.float32)
    return eqd.data.loader((x, np.arange(60) % 3) if classes else x, 16, seed=0)


@pytest.mark.parametrize("classes", [False, True])
def test_noise_comes_paired_and_as_it_was_drawn(classes):
    paired = eqd.train.OptimalNoise(batches(classes), seed=1)
    noises = []
    for (x0, (noise, args)), (same_x0, same_args) in zip(
        itertools.islice(paired, 40), batches(classes), strict=False
    ):
        np.testing.assert_array_equal(x0, same_x0)
        np.testing.assert_array_equal(args, same_args)
        # Paired already: what is optimal stays where it is.
        order = optimal_pairs(x0, noise, classes=args)
        np.testing.assert_array_equal(order, np.arange(16))
        assert noise.dtype == x0.dtype
        noises.append(noise)
    # 1,280 numbers, five standard errors.
    assert abs(np.mean(noises)) < 5 / np.sqrt(1280)
    assert abs(np.var(noises) - 1) < 5 * np.sqrt(2 / 1280)
    assert len(np.unique(noises)) == 1280


def test_noise_of_a_class_is_still_standard_normal():
    """Of two far classes, pairs across them would give each half of the noise."""
    rng = np.random.default_rng(0)
    label = np.arange(64) % 2
    x0 = (rng.normal(size=(64, 1)) + 10 * label[:, None]).astype(np.float32)
    paired = eqd.train.OptimalNoise(itertools.repeat((x0, label)), seed=0)
    first = [noise[label == 0] for _, (noise, _) in itertools.islice(paired, 20)]
    assert abs(np.mean(first)) < 5 / np.sqrt(640)
    across = [noise[optimal_pairs(x0, noise)][label == 0] for noise in rng.normal(size=(20, 64, 1))]
    assert np.mean(across) < -0.7


def test_noise_continues_from_its_state():
    paired = eqd.train.OptimalNoise(batches(True), seed=1)
    next(paired)
    state = paired.get_state()
    expected = [next(paired) for _ in range(3)]
    again = eqd.train.OptimalNoise(batches(True), seed=1)
    again.set_state(state)
    assert isinstance(again, eqd.train.ResumableBatches)
    jax.tree.map(np.testing.assert_array_equal, expected, [next(again) for _ in range(3)])
    with pytest.raises(ValueError, match="get_state"):
        eqd.train.OptimalNoise(batches(True), seed=2).set_state(state)


@pytest.mark.slow
def test_a_flow_of_pairs_is_straighter_and_right_in_few_steps():
    """Curved paths need many steps: of independent noise, two are not enough."""
    with jax.enable_x64(False):
        rng = np.random.default_rng(1)
        noise = jnp.asarray(rng.normal(size=(2000, 2)), jnp.float32)
        data = couplings.eight_gaussians(2000, rng)
        alone, paired = (
            couplings.measure(couplings.train(pairs), noise, data) for pairs in (False, True)
        )
    assert paired["bend"] < 0.1 * alone["bend"]
    assert paired["two steps"] < 0.1 * alone["two steps"]
    # Both learn the same law.
    assert max(alone["exactly"], paired["exactly"]) < 0.005
