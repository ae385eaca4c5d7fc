"""Quartiles of the loss and their summary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqdiff import train
from eqdiff._process import cosine_schedule, VPSDE
from eqdiff.train._metrics import quartile_metrics, quartiles


@pytest.mark.parametrize("num_steps", [4, 10, 1000, 4000, 3])
def test_quartiles_of_a_schedule(num_steps):
    """The official rule, `int(4 * t / T)`."""
    t = np.arange(num_steps)
    expected = [int(4 * s / num_steps) for s in t]
    found = quartiles(jnp.asarray(t, jnp.int32), cosine_schedule(num_steps))
    np.testing.assert_array_equal(found, expected)


def test_quartiles_of_an_interval():
    t = jnp.asarray([0.2, 0.29, 0.31, 0.39, 0.41, 0.49, 0.51, 0.6])
    expected = [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(quartiles(t, VPSDE(t0=0.2, t1=0.6)), expected)


def test_quartiles_between_the_steps_of_a_schedule():
    t = jnp.asarray([0.0, 1.9, 2.1, 3.9, 4.1, 5.9, 6.1, 7.0])
    np.testing.assert_array_equal(quartiles(t, cosine_schedule(8)), [0, 0, 1, 1, 2, 2, 3, 3])


def _metrics(t, loss, *, nonfinite=False):
    loss = jnp.asarray(loss)
    sums, counts = quartile_metrics(jnp.asarray(t, jnp.int32), {"loss": loss}, cosine_schedule(8))
    mean = jnp.mean(loss)
    norms = (mean, mean / 2, mean / 4)
    return train.StepMetrics(mean, {"a": 2 * mean}, *norms, jnp.asarray(nonfinite), sums, counts)


def test_summary():
    steps = [_metrics([0, 1, 7], [1.0, 2.0, 30.0]), _metrics([0, 4, 4], [6.0, 10.0, 20.0])]
    summary = train.summarise(steps)
    assert summary == pytest.approx(
        {
            "steps": 2,
            "loss": (11 + 12) / 2,
            "a": 11 + 12,
            "grad_norm": (11 + 12) / 2,
            "update_norm": (11 + 12) / 4,
            "param_norm": (11 + 12) / 8,
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
    t, process = jnp.asarray([0, 9], jnp.int32), cosine_schedule(10)
    sums, counts = jax.jit(lambda t: quartile_metrics(t, {"x": jnp.ones(2)}, process))(t)
    np.testing.assert_array_equal(counts, [1, 0, 0, 1])
    np.testing.assert_array_equal(sums["x"], [1, 0, 0, 1])


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="at least one step"):
        train.summarise([])
