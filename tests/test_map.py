"""Functions of many examples: a result depends on the key and on its own index alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import eqdiff as eqd


KEY = jax.random.key(7)
X = np.linspace(-1, 1, 21, dtype=np.float32).reshape(7, 3)


def noisy(x, key):
    return {"x": 2 * x + jax.random.normal(key, x.shape, x.dtype), "sum": (jnp.sum(x), x[0] > 0)}


def mesh_of(devices):
    assert jax.device_count() >= devices
    return None if devices == 0 else jax.make_mesh((devices,), ("data",))


@pytest.mark.parametrize("devices", [0, 2])
@pytest.mark.parametrize("num", [1, 5, 7])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_results_do_not_depend_on_chunks_devices_or_number(batch_size, devices, num):
    """Example i is `fn(x[i], fold_in(key, i))`, computed alone."""
    found = eqd.map_examples(noisy, X[:num], key=KEY, batch_size=batch_size, mesh=mesh_of(devices))
    alone = [noisy(jnp.asarray(x), jax.random.fold_in(KEY, i)) for i, x in enumerate(X[:num])]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_several_arguments_and_trees(asarray):
    numbers = asarray(np.arange(7, dtype=np.int32))
    tree = {"a": asarray(X), "b": (numbers, None)}

    def fn(tree, scale, key):
        return scale * jnp.sum(tree["a"]) + tree["b"][0]

    with jax.numpy_dtype_promotion("standard"):
        found = eqd.map_examples(fn, tree, asarray(X[:, 0]), key=KEY, batch_size=2)
    np.testing.assert_allclose(found, X[:, 0] * X.sum(1) + np.arange(7), rtol=1e-5)


def test_whole_numbers_and_half_precision_stay_what_they_are(tmp_path):
    def fn(x, key):
        return jnp.sum(x > 0), x.astype(jnp.bfloat16)

    for _ in range(2):  # Also when read from the folder.
        count, half = eqd.map_examples(fn, X, key=KEY, batch_size=2, folder=tmp_path)
        assert np.issubdtype(count.dtype, np.integer) and half.dtype == jnp.bfloat16
        np.testing.assert_array_equal(count, (X > 0).sum(1))
        np.testing.assert_array_equal(half, X.astype(jnp.bfloat16))


def plain(weights):
    return lambda x, key: jnp.sum(weights @ x)


def jitted(weights):
    return jax.jit(plain(weights))


class Module(eqx.Module):
    weights: jax.Array

    def __call__(self, x, key):
        return jnp.sum(self.weights @ x)


def script(weights):
    """A function without a closure, whose weights are a variable of its module."""
    names = {"weights": weights, "jnp": jnp}
    exec("def fn(x, key):\n    return jnp.sum(weights @ x)", names)
    return names["fn"]


@pytest.mark.parametrize("make", [plain, jitted, script, Module])
def test_weights_are_inputs_of_the_program_not_constants(make, monkeypatch):
    """Ten megabytes in the program would be copied, hashed and folded at each compilation."""
    weights = jnp.ones((2**20 * 5 // 6, 3), jnp.float32)
    sizes, run = [], eqd._chunks.program

    def spy(*args):
        sizes.append(len(run.lower(*args).as_text()))
        return run(*args)

    monkeypatch.setattr(eqd._chunks, "program", spy)
    found = eqd.map_examples(make(weights), X, key=KEY, batch_size=2)
    np.testing.assert_allclose(found, X.sum(1) * len(weights), rtol=1e-3, atol=0.5)
    assert max(sizes) < 20_000


@pytest.mark.parametrize("make", [plain, jitted, script, Module])
@pytest.mark.parametrize(
    ("place", "devices"),
    [("default", 0), ("default", 2), ("other", 0), ("other", 2), ("everywhere", 2)],
)
def test_weights_may_sit_anywhere(make, place, devices):
    """Also where a training step on a mesh leaves them."""
    replicated = NamedSharding(mesh_of(2), PartitionSpec())
    device = {"default": None, "other": jax.devices()[1], "everywhere": replicated}[place]
    weights = jax.device_put(jnp.ones((4, 3), jnp.float32), device)
    found = eqd.map_examples(make(weights), X, key=KEY, batch_size=2, mesh=mesh_of(devices))
    np.testing.assert_allclose(found, 4 * X.sum(1), rtol=1e-5, atol=1e-6)


def test_a_function_is_traced_and_compiled_once_for_all_calls():
    traces = []

    def fn(x, key):
        traces.append(x.shape)
        return x

    before = eqd._chunks.program._cache_size()
    for _ in range(2):
        eqd.map_examples(fn, X, key=KEY, batch_size=2)
    assert traces == [(3,)] and eqd._chunks.program._cache_size() == before + 1


def test_what_looks_alike_is_not_the_same_program():
    """1 and True are equal, and static parts are told apart by equality."""

    class Constant(eqx.Module):
        value: int | bool = eqx.field()

        def __call__(self, x, key):
            return jnp.asarray(self.value)

    for value in (1, True, 1.0):
        found = eqd.map_examples(Constant(value), X, key=KEY)
        assert found.dtype == jnp.asarray(value).dtype


def checked(x, key):
    """Fails where the first number is 9, or 8 in another way."""
    x = eqx.error_if(x, x[0] == 9, "nine is not a number")
    return eqx.error_if(x, x[0] == 8, "eight neither"), jnp.sum(x > 0)


def with_bad(*indices, value=9):
    data = X.copy()
    data[list(indices), 0] = value
    return data


@pytest.mark.parametrize("devices", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize("bad", [(0,), (4,), (6,), (0, 1, 2), (2, 6)])
def test_a_bad_example_does_not_lose_the_others(batch_size, devices, bad):
    says = rf"map_examples: {len(bad)} of 7 examples failed.*{', '.join(map(str, bad))}\. The first"
    with pytest.raises(eqd.FailedExamples, match=says) as caught:
        eqd.map_examples(
            checked, with_bad(*bad), key=KEY, batch_size=batch_size, mesh=mesh_of(devices)
        )
    assert sorted(caught.value.errors) == list(bad)
    assert all("nine is not a number" in said for said in caught.value.errors.values())
    found, count = caught.value.results
    good = np.setdiff1d(np.arange(7), bad)
    np.testing.assert_array_equal(found[good], X[good])
    np.testing.assert_array_equal(count[good], (X[good] > 0).sum(1))
    assert np.all(np.isnan(found[list(bad)])) and np.all(np.isnan(count[list(bad)]))
    # Nothing is left of the failure that would be raised again later.
    jax.effects_barrier()


@pytest.mark.parametrize("num", [1, 2, 7, 40])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_a_function_that_fails_for_all_is_an_error(num, batch_size):
    calls = []

    def fn(x, key):
        x = eqx.error_if(x, x[0] < 9, "nothing works")
        jax.debug.callback(lambda _: calls.append(1), x[0])
        return x

    errors = (eqx.EquinoxRuntimeError, jax.errors.JaxRuntimeError)
    with pytest.raises(errors, match="nothing works"):
        eqd.map_examples(fn, np.zeros((num, 3), np.float32), key=KEY, batch_size=batch_size)


def test_a_later_chunk_may_fail_as_a_whole():
    data = with_bad(3, 4, 5)
    with pytest.raises(eqd.FailedExamples, match="3 of 7") as caught:
        eqd.map_examples(checked, data, key=KEY, batch_size=3)
    found, _ = caught.value.results
    np.testing.assert_array_equal(np.isnan(found[:, 0]), np.isin(np.arange(7), (3, 4, 5)))


def test_what_is_wrong_before_any_computation_is_raised_as_it_is():
    def fn(x, key):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        eqd.map_examples(fn, X, key=KEY)


class Counting:
    """Counts the chunks that are computed, and fails at one of them if asked to."""

    def __init__(self, monkeypatch):
        self.chunks, self.stop = [], None
        original = eqd._chunks.program

        def counted(*args):
            indices = args[2]
            if not isinstance(indices, jax.core.Tracer):
                start = int(np.asarray(indices)[0])
                if start == self.stop:
                    raise KeyboardInterrupt
                self.chunks.append(start)
            return original(*args)

        monkeypatch.setattr(eqd._chunks, "program", counted)

    def since(self):
        chunks, self.chunks = self.chunks, []
        return chunks


def run_map(folder, **options):
    return eqd.map_examples(noisy, X, key=KEY, batch_size=2, folder=folder, **options)["x"]


def run_generate(folder, **options):
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50), 0.2, 0.5)
    sampler = eqd.DDIM(3, eta=1.0)
    options = {"key": KEY, "batch_size": 2} | options
    return eqd.generate(sampler, denoiser, 7, (3,), folder=folder, **options)


@pytest.mark.parametrize("run", [run_map, run_generate])
def test_a_long_job_continues_where_it_stopped(run, tmp_path, monkeypatch):
    whole = run(None)
    count = Counting(monkeypatch)
    count.stop = 4
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    # The second was under way and is lost with what stopped it.
    assert count.since() == [0, 2]
    count.stop = None
    np.testing.assert_array_equal(run(tmp_path), whole)
    assert count.since() == [2, 4, 6]
    # A second time nothing is left to do; damaged, missing and empty chunks are.
    np.testing.assert_array_equal(run(tmp_path), whole)
    assert count.since() == []
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 4
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 2])
    files[2].write_bytes(b"")
    files[3].unlink()
    np.testing.assert_array_equal(run(tmp_path), whole)
    assert count.since() == [2, 4, 6]
    damaged = bytearray(content)
    damaged[len(content) // 3] ^= 0xFF
    files[1].write_bytes(damaged)
    np.testing.assert_array_equal(run(tmp_path), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["examples.json", *(f.name for f in files)]


def test_failures_are_tried_again(tmp_path, monkeypatch):
    options = dict(key=KEY, batch_size=2, folder=tmp_path)
    with pytest.raises(eqd.FailedExamples, match="1 of 7"):
        eqd.map_examples(checked, with_bad(3), **options)
    count = Counting(monkeypatch)
    found, _ = eqd.map_examples(checked, X, **options)
    np.testing.assert_array_equal(found, X)
    assert count.since() == [2]


def other(fn=noisy, data=X, key=KEY, batch_size=2):
    return lambda folder: eqd.map_examples(fn, data, key=key, batch_size=batch_size, folder=folder)


@pytest.mark.parametrize(
    "run",
    [
        other(key=jax.random.key(8)),
        other(batch_size=3),
        other(data=X[:6]),
        other(data=X[:, :2]),
        other(fn=lambda x, key: jnp.sum(x)),
        run_generate,
    ],
    ids=["key", "batch_size", "num", "shape", "result", "generate"],
)
def test_the_folder_of_another_call_is_refused(run, tmp_path):
    run_map(tmp_path)
    with pytest.raises(ValueError, match="holds the results of another call"):
        run(tmp_path)
    (tmp_path / "examples.json").write_text("{")
    with pytest.raises(ValueError, match=r"examples\.json is damaged"):
        run_map(tmp_path)


@pytest.mark.parametrize(
    ("args", "options", "says"),
    [
        ((), {}, "at least one array"),
        ((X, X[:3]), {}, r"one length, but their shapes are \[\(7, 3\), \(3, 3\)\]"),
        ((1.0,), {}, r"one length, but their shapes are \[\(\)\]"),
        ((X[:0],), {}, r"examples=0\): expected a positive whole number"),
        ((X,), {"batch_size": 0}, r"batch_size=0\): expected a positive whole number"),
        ((X,), {"batch_size": 2.0}, r"batch_size=2.0\): expected a positive whole number"),
    ],
)
def test_map_examples_refuses_what_does_not_fit(args, options, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=says):
        eqd.map_examples(lambda *example: example, *args, key=KEY, **options)


def test_progress_counts_examples(capsys):
    eqd.map_examples(noisy, X, key=KEY, batch_size=3, progress=True)
    assert "7/7" in capsys.readouterr().err


def test_old_keys_serve_too(tmp_path):
    """`jax.random.PRNGKey`, whose keys are plain whole numbers."""
    found = eqd.map_examples(noisy, X, key=jax.random.PRNGKey(7), batch_size=2, folder=tmp_path)
    expected = eqd.map_examples(noisy, X, key=jax.random.key(7))
    np.testing.assert_allclose(found["x"], expected["x"], rtol=1e-6)


@pytest.mark.slow
def test_bits_per_dim_of_a_batch_with_a_bad_image():
    """What it is for: an image off its levels among others."""
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE(), 0.1, 0.5)
    flow = eqd.ProbabilityFlow(rtol=1e-2, atol=1e-2)
    dequantise = eqd.GaussianDequantisation(levels=3)

    def bits(x, key):
        found = eqd.bits_per_dim(denoiser, x, flow=flow, dequantise=dequantise, key=key)
        return found.bits

    images = np.array([[0.0, 1.0], [0.4, 1.0], [-1.0, 0.0]], np.float32)
    with pytest.raises(eqd.FailedExamples, match=r"indices: 1\..*on none of the levels") as e:
        eqd.map_examples(bits, images, key=KEY)
    found = e.value.results
    alone = eqx.filter_jit(bits)(jnp.asarray(images[2]), jax.random.fold_in(KEY, 2))
    assert np.isnan(found[1]) and np.all(np.isfinite(found[[0, 2]]))
    np.testing.assert_allclose(found[2], alone, rtol=1e-4)
