"""The conditions of networks: what enters where, learned nulls and their dropout, and errors.

Densities that trained networks learn are in `test_nn_conditions_trained.py`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_network
from jax.sharding import Mesh
from toys import quick_jit

import eqdiff as eqd
import eqdiff.nn as nn


VECTOR, CLASS = nn.VectorCondition(3, null=True), nn.ClassCondition(4, dropout=0.3)
TOKENS = nn.TokenCondition(5, dropout=0.4)
SEVERAL = {"label": CLASS, "text": TOKENS, "theta": VECTOR}
SHAPE = dict(channels=8, num_res_blocks=1, channel_mult=(1,), attention_downsamples=(1,))
STYLE = nn.styles.iddpm(heads=nn.styles.Heads(2), norm_groups=4)


def unet(conditions, key, dims=1, in_channels=2, num_classes=None, **options):
    shape = nn.UNetShape(in_channels, 2, dims=dims, num_classes=num_classes, **SHAPE)
    return nn.UNet(shape, STYLE, nn.embeddings.iddpm(), conditions=conditions, key=key, **options)


def mlp(conditions, key):
    return nn.MLP(4, 4, 16, 1, conditions=conditions, key=key)


def dit(conditions, key, **options):
    return nn.DiT(2, 2, 2, 16, 1, 2, conditions=conditions, key=key, **options)


BUILD = {"MLP": mlp, "UNet": unet, "DiT": dit}
SIDES = {"MLP": (4,), "UNet": (2, 8), "DiT": (2, 4, 4)}
networks = pytest.mark.parametrize("name", BUILD)
# A U-Net takes long to compile.
compiled = pytest.mark.parametrize(
    "name", ["MLP", pytest.param("UNet", marks=pytest.mark.slow), "DiT"]
)


def build(name, conditions):
    return random_network(lambda key: BUILD[name](conditions, key))


def called(net):
    """The network, compiled once for each structure of its `args`."""
    params, static = eqx.partition(net, eqx.is_array)
    run = quick_jit(lambda params, x, args: eqx.combine(params, static)(1.0, x, args))
    return lambda x, args: run(params, x, args)


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def values(seed=0):
    mask = jnp.asarray([True, True, False])
    text = numbers(3, 5, seed=seed), mask
    return {"label": jnp.asarray(seed % 4), "text": text, "theta": numbers(3, seed=seed + 9)}


@compiled
def test_each_condition_and_each_null_matters(name):
    net, x, args = called(build(name, SEVERAL)), numbers(*SIDES[name]), values()
    given = net(x, args)
    for key, other in values(seed=1).items():
        assert jnp.max(jnp.abs(net(x, {**args, key: other}) - given)) > 1e-3, key
        assert jnp.max(jnp.abs(net(x, {**args, key: None}) - given)) > 1e-3, key
    none = net(x, dict.fromkeys(args))
    np.testing.assert_allclose(net(x, None), none, rtol=1e-6)
    assert given.shape == x.shape and bool(jnp.all(jnp.isfinite(none)))


@compiled
def test_transformations_agree(name):
    """One example, a batch, and an exported program without one of the conditions."""
    net, x = build(name, SEVERAL), numbers(3, *SIDES[name])
    args = jax.tree.map(lambda *a: jnp.stack(a), *(values(seed) for seed in range(3)))
    run = called(net)
    one = [run(x[i], jax.tree.map(lambda a, i=i: a[i], args)) for i in range(3)]
    batch = jax.vmap(lambda x, args: net(1.0, x, args))
    np.testing.assert_allclose(quick_jit(batch)(x, args), one, rtol=2e-4, atol=2e-5)
    text = {k: v for k, v in args.items() if k != "label"}

    def unlabelled(x, args):
        return batch(x, {**args, "label": None})

    program = jax.export.export(quick_jit(unlabelled))(x, text)
    loaded = jax.export.deserialize(program.serialize())
    np.testing.assert_allclose(
        loaded.call(x, text)[0], run(x[0], {**values(0), "label": None}), rtol=2e-4, atol=2e-5
    )


@compiled
def test_conditions_are_dropped_independently_where_a_key_is_given(name):
    """Outputs are those with and without each, as often as their probabilities say."""
    x, args, number = numbers(*SIDES[name]), values(), 500
    net = build(name, SEVERAL)
    without = called(net)
    run = quick_jit(jax.vmap(lambda key: net(1.0, x, args, key=key)))
    found = np.asarray(run(jax.random.split(jax.random.key(3), number))).reshape(number, -1)
    cases, probabilities = [], []
    for label, of_label in ((args["label"], 0.7), (None, 0.3)):
        for text, of_text in ((args["text"], 0.6), (None, 0.4)):
            case = without(x, {**args, "label": label, "text": text})
            cases.append(np.ravel(case))
            probabilities.append(of_label * of_text)
    distance = np.max(np.abs(found[:, None] - np.stack(cases)), axis=2)
    assert np.max(np.min(distance, axis=1)) < 1e-3
    counts = np.bincount(np.argmin(distance, axis=1), minlength=4)
    expected = number * np.asarray(probabilities)
    # The vector has a null, but no dropout. 99.99 % of a χ² with three degrees of freedom.
    assert np.sum((counts - expected) ** 2 / expected) < 21.1


@compiled
def test_padding_has_no_influence_and_the_order_of_tokens_none(name):
    net, x = called(build(name, nn.TokenCondition(5, null=True))), numbers(*SIDES[name])
    tokens = numbers(4, 5)
    expected = net(x, tokens)
    padded = jnp.concatenate([tokens, jnp.full((2, 5), jnp.nan, jnp.float32)])
    mask = jnp.arange(6) < 4
    np.testing.assert_allclose(net(x, (padded, mask)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net(x, tokens[::-1]), expected, rtol=1e-4, atol=1e-5)
    none = net(x, None)
    np.testing.assert_allclose(net(x, (padded, mask & False)), none, rtol=1e-4, atol=1e-5)
    assert jnp.max(jnp.abs(none - expected)) > 1e-3


def test_a_field_of_any_size_is_what_a_super_resolution_network_sees():
    net = random_network(lambda key: unet(nn.FieldCondition(1, mean=2.0, std=4.0), key, dims=2))
    body = net.body
    plain = random_network(lambda key: unet(None, key, dims=2, in_channels=3))
    same = (net.time_embedding, body)
    plain = eqx.tree_at(lambda net: (net.time_embedding, net.body), plain, same)
    upsampler, x = nn.SuperResolution(plain), numbers(2, 4, 4)
    for sides in ((2, 2), (4, 4), (2, 4)):
        field = numbers(1, *sides)
        expected = upsampler(1.0, x, (field - 2.0) / 4.0)
        np.testing.assert_allclose(net(1.0, x, field), expected, rtol=1e-5, atol=1e-6)
    # The mean of a field of twice the sides, weighted by the triangle of linear interpolation.
    weights = np.asarray([0.125, 0.375, 0.375, 0.125])
    large = np.asarray(numbers(1, 8, 8))
    inside = np.einsum("ij,i,j->", large[0, 1:5, 3:7], weights, weights)
    found = nn._condition_embeddings.resized(jnp.asarray(large), (4, 4))
    np.testing.assert_allclose(found[0, 1, 2], inside, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UNet", "DiT"])
def test_gradients_through_rematerialised_blocks_are_the_same(name):
    x, args = numbers(*SIDES[name]), values()

    def loss(net):
        return jnp.sum(net(1.0, x, args, key=jax.random.key(0)) ** 2)

    def gradient(remat):
        net = random_network(lambda key: BUILD[name](SEVERAL, key, remat=remat))
        params, static = eqx.partition(net, eqx.is_inexact_array)
        return quick_jit(jax.grad(lambda params: loss(eqx.combine(params, static))))(params)

    found, expected = gradient(True), gradient(False)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(b))) + 1e-6)


@pytest.mark.slow
def test_conditions_are_added_to_a_trained_network():
    """`transfer` copies all it had; the attention to tokens starts at zero, so nothing changes."""
    old = random_network(lambda key: unet(None, key))
    new, report = nn.transfer(old, unet(nn.TokenCondition(5), jax.random.key(0)))
    assert not report.unused and all("cross" in n or "condition" in n for n in report.fresh)
    x = numbers(2, 8)
    np.testing.assert_allclose(new(1.0, x, numbers(3, 5)), old(1.0, x), rtol=1e-5, atol=1e-6)


def test_large_means_lose_no_digits():
    """273.15 K ± 1e-3, in half precision or as float64 numbers."""
    condition = nn.VectorCondition(2, mean=(273.15, 0.0), std=(1e-3, 1.0))
    assert hash(condition) == hash(
        nn.VectorCondition(2, np.array([273.15, 0]), np.array([1e-3, 1]))
    )
    net = random_network(lambda key: mlp(condition, key))
    y = np.array([273.15 + 2e-3, 0.5])
    plain = random_network(lambda key: mlp(nn.VectorCondition(2), key))
    tolerance = 1e-5 if jax.config.jax_enable_x64 else 0.05
    found = net(1.0, numbers(4), jnp.asarray(y))
    expected = plain(1.0, numbers(4), jnp.asarray([2.0, 0.5]))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_tuples_and_nested_dictionaries():
    conditions = ({"a": VECTOR, "b": CLASS}, VECTOR)
    net, x = random_network(lambda key: mlp(conditions, key)), numbers(4)
    assert net.conditions == conditions
    y = numbers(3)
    given = net(1.0, x, ({"a": y, "b": 1}, None))
    assert jnp.max(jnp.abs(given - net(1.0, x, ({"a": None, "b": 1}, y)))) > 1e-3
    np.testing.assert_array_equal(net(1.0, x, (None, y)), net(1.0, x, ({"a": None, "b": None}, y)))


WRONG = [
    (None, r"needs args\['label'\], one integer from 0 to 3, and has no learned null.*dropout=0.1"),
    ({"label": 1}, r"args has no 'theta': add it, args=\{\.\.\., 'theta': \.\.\.\}.*or None for"),
    ({"label": 1, "theta": None, "wind": np.zeros(2)}, r"'wind': eqdiff.nn.VectorCondition\(2\)\}"),
    ({"label": 4, "theta": None}, r"args\['label'\].*class labels from 0 to 3, got 4"),
    ({"label": 1.0, "theta": None}, "is one integer"),
    ({"label": 1, "theta": np.zeros(4)}, r"args\['theta'\] is one vector.*\(3,\), got float64 of"),
    ({"label": 1, "theta": "north"}, r"one vector of real numbers of shape \(3,\), got 'north'"),
    ({"label": 1, "theta": np.zeros((2, 3))}, r"Batch with jax.vmap\(net\)\(c_noises, xs, args\)"),
    (np.zeros(3), "args is a dictionary of their values by these names, got float64 of shape"),
]


@networks
@pytest.mark.parametrize(("args", "match"), WRONG)
def test_wrong_args_are_refused(name, args, match):
    net = build(name, {"label": nn.ClassCondition(4), "theta": VECTOR})
    with pytest.raises(ValueError, match=match):
        net(1.0, numbers(*SIDES[name]), args)


@networks
def test_a_network_without_conditions_says_how_to_build_one_with(name):
    net, x = build(name, None), numbers(*SIDES[name])
    args = {"label": 3, "theta": jnp.zeros(5), "more": (jnp.zeros((7, 3, 2)),)}
    with pytest.raises(ValueError, match=f"this {name} was built without classes or conditions"):
        net(1.0, x, args)
    hint = r"'label': eqdiff.nn.ClassCondition\(num_classes=...\), 'theta': eqdiff.nn.Vector"
    with pytest.raises(ValueError, match=hint):
        net(1.0, x, args)


REFUSED = [
    (lambda: mlp(nn.FieldCondition(2), jax.random.key(0)), "an MLP takes vectors and has no chann"),
    (lambda: mlp({}, jax.random.key(0)), "expected a condition, such as"),
    (lambda: mlp([VECTOR], jax.random.key(0)), "got a list of 1"),
    (lambda: mlp({"a.b": VECTOR}, jax.random.key(0)), "'a.b' cannot name a condition"),
    (lambda: nn.MLP(2, 2, num_classes=3, conditions=VECTOR, key=jax.random.key(0)), "got both"),
    (lambda: unet(VECTOR, jax.random.key(0), num_classes=3), "conditions=... or num_classes=3"),
    (lambda: nn.DiT(num_classes=3, conditions=VECTOR, key=jax.random.key(0)), "got both"),
    (
        lambda: nn.UNet(
            nn.UNetShape(**SHAPE), STYLE, None, conditions=VECTOR, key=jax.random.key(0)
        ),
        "without an embedding has nothing to add a class or a vector to",
    ),
    (lambda: nn.VectorCondition(0), "at least 1"),
    (lambda: nn.ClassCondition(3, dropout=1.0), "a probability below 1"),
    (lambda: nn.VectorCondition(3, std=(1.0, 0.0, 1.0)), "expected positive numbers"),
    (lambda: nn.FieldCondition(3, mean=np.zeros(2)), r"or 3 of them, got shape \(2,\)"),
]


@pytest.mark.parametrize(("make", "match"), REFUSED)
def test_what_cannot_be_built_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


FIELDS = [
    (jnp.zeros((2, 4)), "spatial axes of x; got float32 of shape"),
    (jnp.zeros((1, 4, 4)), "one field of real numbers of shape"),
    (jnp.zeros((2, 0, 4)), "one field of real numbers of shape"),
]


@pytest.mark.parametrize(("field", "match"), FIELDS)
def test_fields_of_other_shapes_are_refused(field, match):
    net = random_network(lambda key: dit(nn.FieldCondition(2), key))
    with pytest.raises(ValueError, match=match):
        net(1.0, numbers(2, 4, 4), field.astype(jnp.float32))


def test_masks_of_other_kinds_are_refused():
    net = random_network(lambda key: mlp(TOKENS, key))
    for mask in (jnp.ones(4), jnp.ones(3, bool), 3):
        with pytest.raises(ValueError, match=r"jnp.arange\(4\) < length"):
            net(1.0, numbers(4), (numbers(4, 5), mask))


def test_guidance_needs_no_null_of_its_own():
    net = random_network(lambda key: mlp(SEVERAL, key))
    denoiser = eqd.Denoiser(net, eqd.VPSDE())
    x, args, without = numbers(4), values(), {**values(), "label": None}
    t = jnp.asarray(0.5, jnp.float32)
    free = eqd.ClassifierFree(denoiser, 0.0)(t, x, args)
    np.testing.assert_allclose(free.x0, denoiser(t, x).x0, rtol=1e-5, atol=1e-5)
    guided = eqd.ClassifierFree(denoiser, 0.0, null=lambda args: {**args, "label": None})
    found = eqx.filter_jit(guided)(t, x, args)
    np.testing.assert_allclose(found.x0, denoiser(t, x, without).x0, rtol=1e-4, atol=1e-4)


def test_a_transformer_of_classes_has_its_null_too():
    net = random_network(lambda key: nn.DiT(2, 2, 2, 16, 1, 2, num_classes=3, key=key))
    x = numbers(2, 4, 4)
    np.testing.assert_array_equal(net(1.0, x, None), net(1.0, x, 3))


@networks
def test_a_saved_network_has_its_conditions(name, tmp_path):
    theta = nn.VectorCondition(3, mean=(1.0, 2.0, 3.0), std=0.5, null=True)
    conditions = {"pair": (CLASS, theta), "text": TOKENS}
    denoiser = eqd.Denoiser(build(name, conditions), eqd.VPSDE())
    eqd.save_model(tmp_path / "model", denoiser)
    loaded = eqd.load_model(tmp_path / "model")
    assert eqx.tree_equal(loaded, denoiser) and loaded.net.conditions == conditions


@pytest.mark.slow
def test_dictionaries_go_through_training_and_sampling_on_a_mesh():
    """The same with one device and with two; every parameter has a gradient."""
    process = eqd.VPSDE()
    # Every null is seen, and after a few steps every map that starts at zero has left it.
    conditions = {**SEVERAL, "theta": nn.VectorCondition(3, dropout=0.5)}
    net = mlp(conditions, jax.random.key(0))
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    number = 4
    args = jax.tree.map(lambda *a: np.stack(a), *(values(seed) for seed in range(number)))
    x = np.asarray(numbers(number, 4))

    def loss_fn(net, t, x0, args, *, key):
        return eqd.l_simple(eqd.predict(eqd.Denoiser(net, process), t, x0, args, key=key)), {}

    found = []
    for where in (None, mesh):
        optimiser = optax.adam(1e-2)
        options = dict(timesteps=eqd.Uniform(process), ema=(0.9,), key=jax.random.key(1))
        state = eqd.train.init(net, optimiser, **options)
        step = eqd.train.make_step(loss_fn, optimiser, mesh=where)
        for _ in range(8):
            state, _ = step(state, (x, args))
        trained = state.net
        drawn = eqd.generate(
            eqd.DDIM(3),
            eqd.Denoiser(trained, process),
            number,
            (4,),
            args=args,
            key=jax.random.key(2),
            mesh=where,
        )
        found.append((trained, drawn))
        with pytest.raises(ValueError, match="example 1: .*class labels from 0 to 3, got 7"):
            bad = {**args, "label": np.asarray([0, 7, 1, 2])}
            step(state, (x, bad))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    before = jax.tree.leaves(eqx.filter(net.condition_embeddings, eqx.is_inexact_array))
    after = jax.tree.leaves(eqx.filter(found[0][0].condition_embeddings, eqx.is_inexact_array))
    assert all(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(before, after, strict=True))
