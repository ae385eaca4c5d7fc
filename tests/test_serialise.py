"""A saved denoiser comes back whole, or says why not."""

import itertools
import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import eqdiff as eqd


SCHEDULE = eqd.cosine_schedule(40)
PROCESSES = {
    "vp": eqd.VPSDE(0.2, 15.0, t0=1e-4),
    "sub_vp": eqd.SubVPSDE(t1=0.9),
    "ve": eqd.VESDE(0.02, 30.0),
    "ve_arrays": eqd.VESDE(jnp.asarray(0.02), jnp.asarray(30.0)),
    "schedule": SCHEDULE,
    "unscaled": eqd.Schedule(SCHEDULE.betas, c_noise=np.arange(40)),
    "respaced": eqd.respace(eqd.linear_schedule(1000), eqd.section_timesteps(1000, (7,))),
}
PARAMETERISATIONS = [
    eqd.PredictNoise(),
    eqd.PredictData(),
    eqd.PredictVelocity(),
    eqd.PredictScore(),
    eqd.PreviousMean(),
]
VARIANCES = [eqd.FixedSmall(), eqd.FixedLarge(), eqd.Learned(), eqd.LearnedRange()]


def filled(make) -> eqx.Module:
    """A network with random weights, without the compilations of drawing them."""
    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: (
            jnp.asarray(rng.standard_normal(s.shape), s.dtype)
            if isinstance(s, jax.ShapeDtypeStruct)
            else s
        ),
        shapes,
    )


def mlp(out_size: int = 2) -> eqd.nn.MLP:
    return filled(lambda key: eqd.nn.MLP(2, out_size, width=8, depth=1, key=key))


def assert_same(loaded: eqd.Denoiser, saved: eqd.Denoiser) -> None:
    assert eqx.tree_equal(loaded, saved, typematch=True)


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_come_back(name, tmp_path):
    denoiser = eqd.Denoiser(mlp(), PROCESSES[name])
    eqd.save_model(tmp_path / "model", denoiser)
    assert_same(eqd.load_model(tmp_path / "model"), denoiser)


def test_tables_are_exact_float64(tmp_path):
    schedule = PROCESSES["respaced"]
    eqd.save_model(tmp_path / "model", eqd.Denoiser(mlp(), schedule))
    loaded = eqd.load_model(tmp_path / "model").process
    for table in ("betas", "c_noises", "timesteps", "alpha_bar", "posterior_log_variance"):
        ours, theirs = getattr(loaded, table), getattr(schedule, table)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
    # Equal tables are one static field: nothing is compiled again.
    assert hash(loaded._betas) == hash(schedule._betas)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("variance", VARIANCES, ids=lambda v: type(v).__name__)
def test_meanings_come_back(parameterisation, variance, tmp_path):
    net = mlp(4 if variance.learned else 2)
    denoiser = eqd.Denoiser(net, SCHEDULE, parameterisation, variance=variance)
    eqd.save_model(tmp_path / "model", denoiser)
    assert_same(eqd.load_model(tmp_path / "model"), denoiser)


def test_unet_comes_back_bit_for_bit(tmp_path):
    shape = eqd.nn.UNetShape(1, 2, 8, 1, (1, 2), num_classes=3)
    style = eqd.nn.styles.iddpm(dropout=0.1, heads=eqd.nn.styles.Heads(2), norm_groups=4)
    options = dict(compute_dtype=jnp.bfloat16)
    embed = eqd.nn.embeddings.iddpm()
    net = filled(lambda key: eqd.nn.UNet(shape, style, embed, **options, key=key))
    denoiser = eqd.Denoiser(net, SCHEDULE, eqd.PredictVelocity(), variance=eqd.LearnedRange())
    eqd.save_model(tmp_path / "model.safetensors", denoiser)
    assert_same(eqd.load_model(tmp_path / "model.safetensors"), denoiser)


def test_the_loaded_network_computes_the_same(tmp_path, getkey):
    denoiser = eqd.Denoiser(mlp(), eqd.VPSDE())
    eqd.save_model(tmp_path / "model", denoiser)
    loaded = eqd.load_model(tmp_path / "model")
    x = jax.random.normal(getkey(), (2,), jnp.float32)
    run = eqx.filter_jit(lambda d, x: d(0.3, x))
    np.testing.assert_array_equal(run(loaded, x).x0, run(denoiser, x).x0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_weights_come_back(dtype, tmp_path):
    net = jax.tree.map(lambda w: w.astype(dtype), mlp())
    denoiser = eqd.Denoiser(net, eqd.VPSDE())
    eqd.save_model(tmp_path / "model", denoiser)
    assert_same(eqd.load_model(tmp_path / "model"), denoiser)


class Wrapped(eqx.Module):
    """A network of one's own: with a part that has a key, a table, and an array as an argument."""

    inner: eqd.nn.MLP
    shift: jax.Array
    table: np.ndarray
    scales: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, inner, shift, table, scales):
        self.inner, self.shift, self.table, self.scales = inner, shift, table, scales

    def __call__(self, c_noise, x, args=None, *, key=None):
        return self.scales[0] * self.inner(c_noise, x, args, key=key) + self.shift


class Forgetful(eqx.Module):
    weight: jax.Array

    def __init__(self, size, *, key):
        self.weight = jax.random.normal(key, (size,))

    def __call__(self, c_noise, x, args=None, *, key=None):
        return self.weight * x


def test_a_class_of_ones_own(tmp_path):
    table = np.arange(3) / 7
    net = Wrapped(mlp(), jnp.array([0.25, -1.0], jnp.float32), table, (0.5, 2.0))
    denoiser = eqd.Denoiser(net, eqd.VPSDE())
    path = tmp_path / "model"
    with pytest.raises(ValueError, match=r"write classes=\(YourClass,\)"):
        eqd.save_model(path, denoiser)
    eqd.save_model(path, denoiser, classes=(Wrapped,))
    loaded = eqd.load_model(path, classes=(Wrapped,))
    assert isinstance(loaded.net, Wrapped)
    assert_same(loaded, denoiser)
    with pytest.raises(ValueError, match=r"load_model\(path, classes=\(Wrapped,\)\)"):
        eqd.load_model(path)


def test_a_class_that_forgets_its_arguments(tmp_path):
    denoiser = eqd.Denoiser(Forgetful(2, key=jax.random.key(0)), eqd.VPSDE())
    with pytest.raises(ValueError, match="constructor takes size, but it has no attribute"):
        eqd.save_model(tmp_path / "model", denoiser, classes=(Forgetful,))
    assert os.listdir(tmp_path) == []


def test_existing_files_are_kept(tmp_path):
    path = tmp_path / "model"
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VESDE()))
    assert path.read_bytes() == before
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VESDE()), overwrite=True)
    assert isinstance(eqd.load_model(path).process, eqd.VESDE)


def test_a_model_is_as_readable_as_its_folder(tmp_path):
    """Not private: the group that shares a folder shares what is saved there."""
    path = tmp_path / "model.safetensors"
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path, large = tmp_path / "model", eqd.nn.MLP(2, 2, width=64, key=jax.random.key(0))
    resource = pytest.importorskip("resource")
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to write more, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written.*the file that was there is unch"):
            eqd.save_model(path, eqd.Denoiser(large, eqd.VESDE()), overwrite=True)
        with pytest.raises(OSError, match="other could not be written.*nothing is left of it"):
            eqd.save_model(tmp_path / "other", eqd.Denoiser(large, eqd.VESDE()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["model"] and path.read_bytes() == before


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    path = tmp_path / "model"
    (tmp_path / ".model.tmp").write_bytes(bytes(10**5))
    denoiser = eqd.Denoiser(mlp(), eqd.VPSDE())
    eqd.save_model(path, denoiser)
    assert os.listdir(tmp_path) == ["model"] and path.stat().st_size < 10**5
    assert_same(eqd.load_model(path), denoiser)


def test_two_processes_do_not_write_one_file(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "model"
    with open(tmp_path / ".model.tmp", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="is being written by another process"):
            eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))


def test_a_new_folder_is_made_and_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    denoiser = eqd.Denoiser(mlp(), eqd.VPSDE())
    eqd.save_model("~/runs/today/model", denoiser)
    assert (tmp_path / "runs/today/model").is_file()
    assert_same(eqd.load_model("~/runs/today/model"), denoiser)


def test_what_cannot_be_saved(tmp_path, monkeypatch):
    function = eqd.Denoiser(mlp(), eqd.VPSDE(), c_noise=lambda process, t: 2 * t)
    with pytest.raises(ValueError, match=r"c_noise is a function.*eqdiff\.ScaledTime"):
        eqd.save_model(tmp_path / "model", function)
    kernel = eqd.KernelSDE(lambda t: jnp.cos(t), lambda t: jnp.sin(t), t0=1e-3, t1=1.5)
    with pytest.raises(ValueError, match="KernelSDE, which holds functions"):
        eqd.save_model(tmp_path / "model", eqd.Denoiser(mlp(), kernel))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"expected an eqdiff\.Denoiser, got a Clip"):
        eqd.save_model(tmp_path / "model", eqd.Clip(function))
    with pytest.raises(ValueError, match=r"net is a builtins\.function"):
        eqd.save_model(tmp_path / "model", eqd.Denoiser(lambda *a, key: a[1], eqd.VPSDE()))
    assert os.listdir(tmp_path) == []


def rewritten(path, *, metadata=None, tensors=None):
    """The file with some of its metadata or tensors replaced, and without checksums, as old ones
    are."""
    with safetensors.safe_open(path, "numpy") as file:
        old_metadata = file.metadata()
        old = {name: file.get_tensor(name) for name in file.keys()}
    model = {k: v for k, v in json.loads(old_metadata["model"]).items() if k != "checksums"}
    old_metadata = {k: v for k, v in old_metadata.items() if k != "crc32"}
    old_metadata["model"] = json.dumps(model)
    new = {k: v for k, v in (old | (tensors or {})).items() if v is not None}
    safetensors.numpy.save_file(new, path, old_metadata | (metadata or {}))


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match="no model file"):
        eqd.load_model(path)
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    whole = path.read_bytes()
    for size in (0, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            eqd.load_model(path)
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"not one written by eqdiff\.save_model"):
        eqd.load_model(path)
    path.write_bytes(whole)
    rewritten(path, metadata={"format_version": "5", "eqdiff_version": "9.0"})
    with pytest.raises(ValueError, match=r"written by eqdiff 9\.0 in format 5.*Upgrade"):
        eqd.load_model(path)
    path.write_bytes(whole)
    model = {"class": "os.system", "arguments": {"command": "true"}}
    rewritten(path, metadata={"model": json.dumps({"net": model, "tables": []})})
    with pytest.raises(ValueError, match=r"needs the class os\.system"):
        eqd.load_model(path)


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "model"
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    rewritten(
        path,
        tensors={
            "net/linear_in.weight": np.zeros((8, 3), np.float32),
            "net/linear_out.weight": None,
            "net/linear_far_out.weight": np.zeros(1),
        },
    )
    with pytest.raises(ValueError, match="do not fit") as error:
        eqd.load_model(path)
    for problem in (
        "missing linear_out.weight",
        "unexpected linear_far_out.weight",
        "linear_in.weight has shape (8, 3), expected (2, 8)",
    ):
        assert problem in str(error.value)


C_NOISES = {
    "time": eqd.ScaledTime(499.0),
    "noise": eqd.LogNoise(0.5),
    "array": eqd.ScaledTime(jnp.asarray(3.0)),
}


@pytest.mark.parametrize("name", C_NOISES)
def test_time_inputs_come_back(name, tmp_path):
    denoiser = eqd.Denoiser(mlp(), eqd.EDMSDE(t0=0.02, t1=100.0), c_noise=C_NOISES[name])
    eqd.save_model(tmp_path / "model", denoiser)
    assert_same(eqd.load_model(tmp_path / "model"), denoiser)


@pytest.mark.parametrize(
    "process", [eqd.VPSDE(), eqd.VESDE(), SCHEDULE], ids=["vp", "ve", "schedule"]
)
def test_time_inputs_are_what_their_names_say(process):
    t = 3 if process is SCHEDULE else 0.3
    expected = np.log(0.5 * process.sigma(t) / process.alpha(t))
    np.testing.assert_allclose(eqd.LogNoise(0.5)(process, t), expected, rtol=1e-5)
    np.testing.assert_allclose(eqd.ScaledTime(499.0)(process, 0.5), 249.5)
    for make, bad in itertools.product((eqd.ScaledTime, eqd.LogNoise), (0.0, -1.0, np.inf)):
        with pytest.raises(ValueError, match="positive finite number"):
            make(bad)


class Doubled(eqx.Module):
    """A time input of one's own."""

    offset: float

    def __call__(self, process, t):
        return 2 * t + self.offset


def test_a_time_input_of_ones_own(tmp_path):
    denoiser = eqd.Denoiser(mlp(), eqd.VPSDE(), c_noise=Doubled(1.0))
    with pytest.raises(ValueError, match=r"eqdiff\.ScaledTime\(\.\.\.\)"):
        eqd.save_model(tmp_path / "model", denoiser)
    eqd.save_model(tmp_path / "model", denoiser, classes=(Doubled,))
    assert_same(eqd.load_model(tmp_path / "model", classes=(Doubled,)), denoiser)


def metadata_of(path):
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()


def test_the_format_decides_not_the_writer(tmp_path):
    path, denoiser = tmp_path / "model", eqd.Denoiser(mlp(), eqd.VPSDE())
    eqd.save_model(path, denoiser)
    metadata = metadata_of(path)
    assert metadata["format_version"] == "4"
    assert set(json.loads(metadata["model"])) == {
        *("net", "process", "parameterisation", "variance", "c_noise", "tables", "checksums"),
    }
    rewritten(path, metadata={"eqdiff_version": "0.0.1"})
    assert_same(eqd.load_model(path), denoiser)
