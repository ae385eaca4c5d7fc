"""Quartiles of the loss and their summary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff import train
from eqdiff.train._metrics import quartile_metrics, quartiles


@pytest.mark.parametrize("num_steps", [4, 10, 1000, 4000, 3])
def test_quartiles_of_a_chain(num_steps):
    """The official rule, `int(4 * t / T)`."""
    t = np.arange(num_steps)
    expected = [int(4 * s / num_steps) for s in t]
    np.testing.assert_array_equal(quartiles(jnp.asarray(t, jnp.int32), (0, num_steps)), expected)


def test_quartiles_of_an_interval():
    t = jnp.asarray([1.0, 1.49, 1.51, 1.99, 2.01, 2.49, 2.51, 3.0])
    expected = [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(quartiles(t, (1.0, 3.0)), expected)
    np.testing.assert_array_equal(quartiles(t, (jnp.asarray(1.0), jnp.asarray(3.0))), expected)


def _metrics(t, loss, *, nonfinite=False):
    loss = jnp.asarray(loss)
    sums, counts = quartile_metrics(jnp.asarray(t, jnp.int32), {"loss": loss}, (0, 8))
    mean = jnp.mean(loss)
    return train.StepMetrics(mean, {"a": 2 * mean}, mean, jnp.asarray(nonfinite), sums, counts)


def test_summary():
    steps = [_metrics([0, 1, 7], [1.0, 2.0, 30.0]), _metrics([0, 4, 4], [6.0, 10.0, 20.0])]
    summary = train.summarise(steps)
    assert summary == pytest.approx(
        {
            "loss": (11 + 12) / 2,
            "a": 11 + 12,
            "grad_norm": (11 + 12) / 2,
            "nonfinite": 0,
            "loss_q0": (1 + 2 + 6) / 3,
            "loss_q2": 15,
            "loss_q3": 30,
        },
        rel=1e-6,
    )
    assert all(type(value) in (int, float) for value in summary.values())


def test_nan_stays_in_its_quarter():
    steps = [_metrics([0, 4], [jnp.nan, 1.0], nonfinite=True), _metrics([0, 4], [1.0, 3.0])]
    summary = train.summarise(steps)
    assert summary["nonfinite"] == 1 and summary["loss_q2"] == 2
    assert np.isnan(summary["loss"]) and np.isnan(summary["loss_q0"])


def test_quartiles_can_be_traced():
    t = jnp.asarray([0, 9], jnp.int32)
    sums, counts = jax.jit(lambda t: quartile_metrics(t, {"x": jnp.ones(2)}, (0, 10)))(t)
    np.testing.assert_array_equal(counts, [1, 0, 0, 1])
    np.testing.assert_array_equal(sums["x"], [1, 0, 0, 1])


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="at least one step"):
        train.summarise([])
