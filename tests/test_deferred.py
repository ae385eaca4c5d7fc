"""Class labels that a compiled program need not check, because what compiles it has them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd
from eqdiff import nn
from eqdiff._deferred import ask, defer, Deferred


KEY = jax.random.key(0)
SCHEDULE = eqd.cosine_schedule(50)
_SMALL = dict(channels=8, num_res_blocks=1, channel_mult=(1,), attention_downsamples=())
_MLP = nn.MLP(4, 4, 8, 1, num_classes=3, key=KEY)
_LABELS = np.array([0, 2, 1])
_FORMS = {
    "MLP": (lambda: _MLP, (4,), lambda labels: labels),
    "DiT": (
        lambda: nn.DiT(1, 1, 2, channels=8, depth=1, num_heads=1, num_classes=3, key=KEY),
        (1, 4, 4),
        lambda labels: labels,
    ),
    "Conditions": (
        lambda: nn.UNet(
            nn.UNetShape(1, 1, **_SMALL, num_classes=3, augment_size=2),
            nn.styles.edm(),
            nn.embeddings.edm(),
            key=KEY,
        ),
        (1, 4, 4),
        lambda labels: nn.Conditions(labels, np.zeros((len(labels), 2), np.float32)),
    ),
    "SuperResolution": (
        lambda: nn.SuperResolution(
            nn.UNet(
                nn.UNetShape(2, 1, **_SMALL, num_classes=3),
                nn.styles.iddpm(norm_groups=4),
                nn.embeddings.iddpm(),
                key=KEY,
            )
        ),
        (1, 4, 4),
        lambda labels: (np.zeros((len(labels), 1, 2, 2), np.float32), labels),
    ),
}


class Programs:
    """The text of every program that would be compiled; none is run."""

    def __init__(self, monkeypatch):
        self.texts, original = [], eqd._chunks.program

        class Stop(Exception):
            pass

        def lowered(*args):
            if isinstance(args[2], jax.core.Tracer):
                return original(*args)
            self.texts.append(original.lower(*args).as_text())
            raise Stop

        self.stop = Stop
        monkeypatch.setattr(eqd._chunks, "program", lowered)


def sampled(net, shape, args, sampler=eqd.DDIM(2), **options):
    denoiser = eqd.Denoiser(net, SCHEDULE)
    return eqd.generate(sampler, denoiser, len(_LABELS), shape, key=KEY, args=args, **options)


def mapped(net, shape, args, **options):
    def fn(args, key):
        return eqd.DDIM(2)(eqd.Denoiser(net, SCHEDULE), jnp.zeros(shape), args)

    return eqd.map_examples(fn, args, key=KEY, **options)


class Module(eqx.Module):
    net: eqx.Module
    shape: tuple = eqx.field(static=True)

    def __call__(self, args, key):
        return self.net(jnp.asarray(1.0), jnp.zeros(self.shape), args)


def module(net, shape, args, **options):
    return eqd.map_examples(Module(net, shape), args, key=KEY, **options)


@pytest.mark.parametrize("run", [sampled, mapped, module])
@pytest.mark.parametrize("form", _FORMS)
def test_a_program_that_is_given_its_classes_calls_nothing_back(form, run, monkeypatch):
    """So that it can be kept, exported, and run by several devices."""
    make, shape, args = _FORMS[form]
    programs = Programs(monkeypatch)
    with pytest.raises(programs.stop):
        run(make(), shape, args(_LABELS))
    (text,) = programs.texts
    assert "stablehlo" in text and "callback" not in text


@pytest.mark.parametrize("run", [sampled, mapped, module])
@pytest.mark.parametrize("form", _FORMS)
def test_classes_that_do_not_exist_are_named_before_anything_runs(form, run, monkeypatch):
    make, shape, args = _FORMS[form]
    net, programs = make(), Programs(monkeypatch)
    name = "generate" if run is sampled else "map_examples"
    for bad in (-1, 4, 2**32 + 1):
        labels = np.array([0, bad, 1])
        says = rf"{name}: example 1: .* class labels from 0 to 2.*, got {bad}\. If your labels"
        # Twice: the second time the function is not traced.
        for _ in range(2):
            with pytest.raises(ValueError, match=says):
                run(net, shape, args(labels))
    assert programs.texts == []


@pytest.mark.parametrize("run", [sampled, module])
def test_on_a_mesh_too(run):
    mesh = jax.make_mesh((2,), ("data",))
    found = run(_MLP, (4,), _LABELS, mesh=mesh)
    np.testing.assert_allclose(found, run(_MLP, (4,), _LABELS), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"example 2: this MLP .* got 3\."):
        run(_MLP, (4,), np.array([0, 2, 3]), mesh=mesh)


def test_the_label_for_no_class_of_a_dit_is_one_of_its_labels(monkeypatch):
    make, shape, args = _FORMS["DiT"]
    programs = Programs(monkeypatch)
    with pytest.raises(programs.stop):
        sampled(make(), shape, np.array([0, 3, 1]))


def test_a_class_that_was_computed_is_checked_by_the_program():
    """It is no argument, so its value is known to nobody else."""

    def fn(label, key):
        return _MLP(jnp.asarray(1.0), jnp.zeros(4), label + 1)

    with pytest.raises(eqd.FailedExamples, match=r"1 of 3.*indices: 1\..*from 0 to 2") as error:
        eqd.map_examples(fn, _LABELS, key=KEY)
    np.testing.assert_array_equal(np.isnan(error.value.results[:, 0]), [False, True, False])


def test_numbers_that_no_network_takes_for_a_class_are_not_checked():
    def fn(label, other, key):
        return jnp.sum(_MLP(jnp.asarray(1.0), jnp.zeros(4), label)) + other.astype(float)

    found = eqd.map_examples(fn, _LABELS, np.array([100, 200, 300]), key=KEY)
    np.testing.assert_allclose(np.diff(found), 100, atol=10)
    with pytest.raises(ValueError, match="example 0: this MLP .* got 100"):
        eqd.map_examples(fn, np.array([100, 200, 300]), _LABELS, key=KEY)


def test_what_a_trace_asks_passes_through_transformations():
    """As the loss of a training step: a gradient of a mean over a scan of batches."""

    def loss(weight, x, label):
        def network():
            asked = [ask(label, n, "a class, not {}") for n in (3, 3, 5)]
            assert asked == [True] * 3 and not ask(x, 3, "")
            return weight * x

        return defer({"label": label}, network)

    def mean(weight, x, label):
        values, deferred = jax.vmap(loss, in_axes=(None, 0, 0))(weight, x, label)
        return jnp.mean(values), deferred

    @jax.jit
    def step(weight, x, label):
        def body(total, batch):
            gradient, deferred = jax.grad(mean, has_aux=True)(weight, *batch)
            return total + gradient, deferred

        return jax.lax.scan(body, jnp.zeros_like(weight), (x, label))

    x, label = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.arange(6).reshape(2, 3)
    for _ in range(2):
        total, deferred = step(jnp.ones((), x.dtype), x, label)
        np.testing.assert_allclose(total, 5.0)
        assert deferred == Deferred(((0, 3, "a class, not {}"), (0, 5, "a class, not {}")))
    deferred.check("step", {"label": label % 3})
    for given in (label, jnp.asarray(label)):
        with pytest.raises(ValueError, match="step: example 3: a class, not 3"):
            deferred.check("step", {"label": given})


def test_an_error_on_the_way_leaves_nothing_behind():
    def fails():
        raise KeyError("mine")

    @jax.jit
    def function(label):
        with pytest.raises(KeyError, match="mine"):
            defer(label, fails)
        assert not ask(label, 3, "{}")
        return label

    function(2)


def test_an_unchecked_function_calls_nothing_back():
    """And a class that does not exist is NaN, not another class."""

    def network(x, *, label):
        return _MLP(jnp.asarray(1.0), x, label)

    batch = jax.jit(jax.vmap(lambda x, y: eqd.unchecked(network)(x, label=y)))
    x, labels = jnp.ones((3, 4)), jnp.asarray([0, 3, -1])
    assert "callback" not in batch.lower(x, labels).as_text()
    assert "callback" in jax.jit(lambda x, y: network(x, label=y)).lower(x[0], 0).as_text()
    found = batch(x, labels)
    np.testing.assert_array_equal(jnp.isnan(found[:, 0]), [False, True, True])
    np.testing.assert_allclose(found[0], network(x[0], label=0), rtol=1e-5, atol=1e-6)
    assert eqd.unchecked(network).__name__ == "network"
