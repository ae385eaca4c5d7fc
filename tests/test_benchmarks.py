"""The instruments: programs read, times estimated, budgets kept, records reported."""

import json
import pathlib
import sys

import numpy as np
import pytest


FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
# At the end: examples have modules of the same names as some benchmarks.
sys.path.append(str(FOLDER))

import _hlo
import _roofline
import _suite_records as records


@pytest.fixture(scope="module")
def kernels():
    """By hand, in the form that XLA prints.

    A convolution and its two gradients, a product, attention, a fusion that takes a slice out of a
    flat vector and one that writes into it, and a loop.
    """
    text = (FOLDER.parent / "tests" / "program.hlo").read_text()
    return {k.name: k for k in _hlo.kernels(_hlo.parse(text))}


def test_kernels_are_found(kernels):
    assert list(kernels) == [
        *("conv.1", "conv.2", "conv.3", "dot.1", "fmha.1"),
        *("loop_multiply_fusion.7", "loop_update_fusion", "dynamic_slice_fusion"),
        *("compare.1", "copy.1"),
    ]
    assert kernels["copy.1"].times == kernels["compare.1"].times == 10
    assert kernels["conv.1"].times == 1


def test_bytes(kernels):
    image, filters, out = 2 * 2 * 4 * 4 * 3, 2 * 5 * 3 * 3 * 3, 2 * 2 * 4 * 4 * 5
    for name in ("conv.1", "conv.2", "conv.3"):
        assert kernels[name].bytes == image + filters + out
    # Without cuBLAS's four megabytes of scratch memory.
    assert kernels["dot.1"].bytes == 4 * (8 * 7 + 7 * 6 + 8 * 6)
    assert kernels["fmha.1"].bytes == 4 * 2 * 2 * 8 * 4
    # Of the vector of 1000 numbers ten are read, and ten are written.
    assert kernels["loop_multiply_fusion.7"].bytes == 4 * 10 + 4 * 10
    assert kernels["loop_update_fusion"].bytes == 4 * 10 + 4 * 10
    # A library's call that is given a slice of the vector.
    assert kernels["dynamic_slice_fusion"].bytes == 4 * (8 * 7 + 7 * 2 + 8 * 2)
    assert kernels["copy.1"].bytes == 2 * 4 * 8


def test_flop(kernels):
    convolution = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    for name in ("conv.1", "conv.2", "conv.3"):
        assert kernels[name].flop == convolution
    assert kernels["dot.1"].flop == 2 * 8 * 6 * 7
    assert kernels["dynamic_slice_fusion"].flop == 2 * 8 * 2 * 7
    # Queries with keys, and weights with values: 2 examples, 8 tokens, 4 channels.
    assert kernels["fmha.1"].flop == 2 * (2 * 2 * 8 * 8 * 4)
    assert kernels["copy.1"].flop == kernels["loop_multiply_fusion.7"].flop == 0


def test_where_kernels_come_from(kernels):
    assert [kernels[f"conv.{i}"].part for i in (1, 2, 3)] == ["forward", "backward", "backward"]
    assert kernels["dot.1"].part == "network" and kernels["fmha.1"].part == "the rest"
    groups = ["convolution"] * 3 + ["product", "attention", "elementwise", "elementwise"]
    groups += ["product", "elementwise", "copy"]
    assert [k.group for k in kernels.values()] == groups
    assert kernels["conv.1"].op == "conv_general_dilated"
    assert _roofline.source_of(kernels["conv.1"]) == "nn/_conv.py Conv.__call__"
    assert kernels["dynamic_slice_fusion"].part == "forward"
    assert kernels["dynamic_slice_fusion"].kind == "__cublas$lt$matmul"
    assert kernels["conv.1"].dtype == "bf16" and kernels["dot.1"].dtype == "f32"
    # A fusion without a name has that of what it reads.
    assert kernels["loop_update_fusion"].kind == "loop_update_fusion"
    with pytest.raises(ValueError, match="ENTRY"):
        _hlo.parse("not a program")


def _kernel(**values):
    blank = dict(name="k", kind="k", group="elementwise", part="the rest", op="", places=())
    return _hlo.Kernel(**(blank | dict(dtype="bf16", bytes=0, flop=0, times=1) | values))


def test_roofline():
    chip = _roofline.Chip("toy", 100.0, {"bf16": 1000.0}, 0.5)
    kernels = [
        _kernel(bytes=200, flop=1000),  # 2 s of bytes, 1 s of operations
        _kernel(bytes=100, flop=3000, group="convolution"),  # 1 s and 3 s
        _kernel(bytes=10, times=4),  # 0.1 s each, less than a launch
    ]
    t = _roofline.totals(kernels, chip)
    assert t.kernels == 6
    assert t.gigabytes == pytest.approx(340e-9) and t.outside == pytest.approx(240e-9)
    assert t.gigaflop == pytest.approx(4000e-9)
    assert t.bytes_ms == pytest.approx(3400) and t.flop_ms == pytest.approx(4000)
    assert t.launch_ms == pytest.approx(3000)
    assert t.floor_ms == pytest.approx(1e3 * (2 + 3 + 0.4))
    assert t.estimate_ms == pytest.approx(1e3 * (2 + 3 + 4 * 0.5))
    # Many launches are a floor of their own.
    assert _roofline.totals([_kernel(times=9)], chip).floor_ms == pytest.approx(4500)
    rows = _roofline.grouped(kernels, lambda k: k.group, chip)
    assert [name for name, _ in rows] == ["elementwise", "convolution"]
    assert [t.kernels for _, t in rows] == [5, 1]
    lines = _roofline.table(rows, top=1).splitlines()
    assert lines[-1].startswith("| 1 more | 1 |") and "| elementwise | 5 |" in lines[-2]


def test_budget():
    now = [0.0]
    budget = records.Budget(100.0, lambda: now[0])
    part = records.Part("part", 30, 50)
    assert budget.allowed(part) == 50
    now[0] = 60.0
    assert budget.left == 40 and budget.allowed(part) == 40
    now[0] = 70.1
    assert budget.allowed(part) is None
    now[0] = 200.0
    assert budget.left == 0 and budget.allowed(records.Part("none", 0, 9)) == 0


def test_covered():
    assert records.covered([]) == 0
    # Two that overlap, one inside another, and one apart; in any order.
    assert records.covered([(10, 11), (0, 2), (1, 3), (1.5, 1.6)]) == pytest.approx(4)


def test_records_and_report(tmp_path):
    path = tmp_path / "results.jsonl"
    record = records.Recorder(path)
    record("chip", kind="device", device="toy", flop_per_image={"train": 5.0})
    record("chip", kind="product", side=8, flop_per_second=1000.0)
    for images in (10, 30, 20):
        facts = {"library": "eqdiff", "batch": 4, "function": "train", "calls": 5}
        record("networks", kind="run", images=images, seconds=2.0, thread_seconds=0.01, **facts)
    record("training", kind="skipped", what="training", error="no data")
    with path.open("a") as file:
        file.write('{"part": "cut o')
    found = records.read_records(path)
    assert len(found) == 6 and found[0]["device"] == "toy"
    assert records.median_rate(found[2:5]) == (10.0, 5.0, 15.0)
    text = records.report(found)
    assert "| 4 | train | eqdiff | 10 | 5–15 | 5 % | 2.0 |" in text
    assert "## Left out\n\n- what training, error no data" in text
    assert json.loads(path.read_text().splitlines()[0])["kind"] == "device"
    assert records.report([]) == "# What the chip tells\n"


@pytest.mark.slow
def test_torch_network_is_ours():
    torch = pytest.importorskip("torch")
    import equinox as eqx
    import jax
    from _torch_unet import UNet

    import eqdiff as eqd

    torch.manual_seed(0)
    net = UNet(channels=32, num_res_blocks=1).eval()
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3.0, 700.0])
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    config = dict(in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1)
    config |= dict(channel_mult=(1, 2, 2, 2), attention_resolutions=(2, 4), num_heads=4)
    ours = eqd.interop.openai_unet(weights, config | {"use_scale_shift_norm": True})
    with torch.no_grad():
        theirs = net(x, t).numpy()
    found = eqx.filter_jit(lambda net, t, x: jax.vmap(net)(t, x))(
        ours, t.numpy().astype(np.float32), x.numpy().astype(np.float32)
    )
    assert np.max(np.abs(found - theirs)) < 1e-4 * np.max(np.abs(theirs))
