"""Curves of a run: what is drawn, read back from the figure; and what chips can do."""

import types

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from eqdiff import train


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, by the last part of their names."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    return figures


def write(path, entries, **options):
    with train.MetricLog(path, **options) as log:
        for step, metrics in entries:
            log.write(step, metrics)


def test_default_curves(tmp_path, drawn):
    """The loss and its terms, at the middle of their windows; a resumed run has them once."""
    path = tmp_path / "metrics.jsonl"

    def line(step, steps, loss):
        quarters = {"loss_q0": loss, "vlb_q3": loss}
        return step, {
            "steps": steps,
            "loss": loss,
            "vlb": loss and -loss,
            "grad_norm": 1.0,
            **quarters,
        }

    write(path, [line(100, 100, 4.0), line(200, 100, 3.0), line(300, 100, 2.0)])
    write(path, [(200, {"bits": 3.0}), line(240, 40, 2.5), line(340, 100, None)], last_step=200)
    train.plot_metrics(path, tmp_path / "loss.png")
    (figure,) = drawn
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    (loss, *_), (vlb, *_) = (axes.get_lines() for axes in figure.axes)
    assert (loss.get_label(), vlb.get_label()) == ("loss", "vlb")
    np.testing.assert_allclose(loss.get_xdata(), [50.5, 150.5, 220.5])
    np.testing.assert_allclose(loss.get_ydata(), [4.0, 3.0, 2.5])
    np.testing.assert_allclose(vlb.get_ydata(), [-4.0, -3.0, -2.5])
    assert "not finite: 1" in figure.get_suptitle()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_a_smoothed_curve_is_the_mean_over_steps(tmp_path, drawn):
    """However the same steps were cut into windows."""
    rng = np.random.default_rng(0)
    values = 2 + rng.normal(size=12_000)
    for steps in (values[:10_000], values):
        ends = np.unique(np.append(rng.integers(1, len(steps), 4000), len(steps)))
        starts = np.insert(ends[:-1], 0, 0)
        entries = [
            (int(b), {"steps": int(b - a), "x": float(np.mean(steps[a:b]))})
            for a, b in zip(starts, ends, strict=True)
        ]
        path = tmp_path / f"{len(steps)}.jsonl"
        write(path, entries)
        train.plot_metrics(path, tmp_path / "x.png", ["x"])
        smooth, faint = drawn[-1].axes[0].get_lines()
        assert len(faint.get_xdata()) == len(ends) and len(smooth.get_xdata()) == 150
        # Points at the means of windows of steps: every point from the steps themselves.
        first = np.array_split(np.arange(len(ends)), 150)[0]
        stop = ends[first[-1]]
        assert smooth.get_ydata()[0] == pytest.approx(np.mean(steps[:stop]))
        assert smooth.get_xdata()[0] == pytest.approx((stop + 1) / 2)


def test_a_run_without_a_finite_loss_has_a_curve(tmp_path, drawn):
    write(tmp_path / "metrics.jsonl", [(10, {"loss": None}), (20, {"loss": None})])
    train.plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "x.png")
    assert "not finite: 2" in drawn[0].get_suptitle()


def test_lines_that_do_not_say_how_many_steps(tmp_path, drawn):
    path = tmp_path / "metrics.jsonl"
    write(path, [(10, {"x": 1.0}), (30, {"x": 2.0})])
    train.plot_metrics(path, tmp_path / "x.png", ["x"])
    np.testing.assert_allclose(drawn[0].axes[0].get_lines()[0].get_xdata(), [5.5, 20.5])


@pytest.mark.parametrize(
    "entries, names, message",
    [
        ([], None, "no loss in .*nothing is yet"),
        ([(1, {"accuracy": 0.5, "name": "a"})], None, r"no loss in .* out of accuracy\."),
        ([(1, {"loss": 0.5})], ["los"], r"no los in .* out of loss\."),
        ([(1, {"loss": 0.5})], [], "no name given"),
    ],
)
def test_nothing_to_plot(entries, names, message, tmp_path):
    write(tmp_path / "metrics.jsonl", entries)
    with pytest.raises(ValueError, match=message):
        train.plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "x.png", names)
    assert not (tmp_path / "x.png").exists()


def chip(kind):
    return types.SimpleNamespace(device_kind=kind)


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        # Names as the drivers give them; figures of the data sheets.
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        # Their like, of which nothing is known here.
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_peaks(kind, teraflops, monkeypatch):
    expected = None if teraflops is None else pytest.approx(1e12 * teraflops)
    monkeypatch.setattr(jax, "devices", lambda: [chip(kind)])
    assert train.peak_flops() == expected


def test_memory(monkeypatch):
    def device(stats):
        return types.SimpleNamespace(memory_stats=lambda: stats)

    stats = {"bytes_in_use": 3, "peak_bytes_in_use": 7, "bytes_limit": 20, "num_allocs": 1}
    monkeypatch.setattr(jax, "local_devices", lambda: [device(stats)])
    assert train.device_memory() == train.DeviceMemory(in_use=3, peak=7, limit=20)
    for none in (None, {}):
        monkeypatch.setattr(jax, "local_devices", lambda none=none: [device(none)])
        assert train.device_memory() is None


def test_memory_of_this_machine():
    """None on a CPU, or numbers that fit together."""
    memory = train.device_memory(jax.local_devices()[0])
    assert memory is None or 0 < memory.in_use <= memory.peak
