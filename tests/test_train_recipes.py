"""The papers' configurations: their sizes, what follows from the process, and small versions."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqdiff as eqd
from eqdiff.train import recipes


# Parameters in millions, as the papers' codes build them for CIFAR-10.
SIZES = {
    ("cosine", None): 52.5,
    ("vp", "ddpmpp"): 61.8,
    ("sub-vp", "ddpmpp-deep"): 106.6,
    ("ve", "ncsnpp"): 62.8,
    ("ve", "ncsnpp-deep"): 107.6,
    ("edm", "edm"): 55.7,
}
NAMES = ("cosine", "linear", "vp", "sub-vp", "ve", "edm", "flow", "learned")
PRESETS = ("iddpm", "ddpmpp", "ncsnpp", "edm", "vdm")


def shapes(recipe, example, **options):
    make = lambda key: recipe.network(example, key=key, **options)  # noqa: E731
    return eqx.filter_eval_shape(make, jax.random.key(0))


def count(net):
    return sum(x.size for x in jax.tree.leaves(net) if isinstance(x, jax.ShapeDtypeStruct))


@pytest.mark.parametrize("name, preset", SIZES)
def test_networks_have_the_papers_sizes(name, preset):
    net = shapes(recipes.named(name, preset), (3, 32, 32))
    assert abs(count(net) / 1e6 - SIZES[name, preset]) < 0.06


def test_the_papers_numbers():
    song = recipes.ncsnpp(eqd.VESDE(0.02, 100.0))
    assert (song.batch_size, song.learning_rate, song.warmup) == (128, 2e-4, 5000)
    assert (song.num_steps, song.ema, song.grad_clip) == (1_300_000, eqd.train.EMAWarmup(0.999), 1)
    assert recipes.ddpmpp(eqd.VPSDE(), deep=True).num_steps == 950_000
    assert isinstance(song.sampler(7), eqd.PredictorCorrector)
    assert song.sampler(7).corrector == eqd.Langevin(snr=0.16)
    edm = recipes.edm(eqd.EDMSDE())
    assert edm.ema == eqd.train.HalfLife(500_000, batch_size=512)
    # The half-life is in images, whatever the batch.
    larger = edm.changed(eqd.train.Changes(batch_size=1024))
    assert larger.ema == eqd.train.HalfLife(500_000, batch_size=1024)
    assert edm.num_steps * edm.batch_size == pytest.approx(200e6, rel=1e-5)
    assert isinstance(edm.sampler(18), eqd.StochasticHeun) and edm.sample_steps == 18


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_network_goes_with_every_process(name, preset):
    """Shapes agree: the loss, the sampler and the likelihood all see the same denoiser."""
    steps = 50 if name in ("cosine", "linear") else None
    recipe = recipes.named(name, preset, example=(1, 8, 8), num_timesteps=steps, small=True)
    net = shapes(recipe, (1, 8, 8), num_classes=10)

    def loss(net, key):
        t, _ = recipe.timesteps.sample(recipe.timesteps.init(), 1, key=key)
        p = eqd.predict(recipe.denoiser(net), t[0], jnp.zeros((1, 8, 8)), 3, key=key)
        sample = recipe.sampler(3)(recipe.denoiser(net), jnp.zeros((1, 8, 8)), 3, key=key)
        return recipe.loss(p)[0], sample

    out, sample = eqx.filter_eval_shape(loss, net, jax.random.key(0))
    assert out.shape == () and sample.shape == (1, 8, 8)


def test_the_loss_follows_the_process(getkey):
    """L_hybrid, score matching, or the bound; a learned process is trained with its network."""
    for name in ("cosine", "vp", "edm", "learned"):
        recipe = recipes.named(name, example=(1, 8, 8), levels=17, num_timesteps=None, small=True)
        make = eqx.filter_jit(lambda key, r=recipe: r.network((1, 8, 8), key=key))
        net = make(getkey())
        denoiser = recipe.denoiser(net)
        x0 = jnp.zeros((1, 8, 8))
        t = jnp.int32(3) if name == "cosine" else jnp.asarray(denoiser.process.t1 / 2)

        @eqx.filter_jit
        def both(denoiser, key, recipe=recipe, name=name, t=t, x0=x0):
            p = eqd.predict(denoiser, t, x0, key=key)
            expected = {
                "cosine": lambda: eqd.l_hybrid(p, levels=17),
                "vp": lambda: eqd.score_matching(p),
                "edm": lambda: eqd.score_matching(p, eqd.EDMWeighting()),
                "learned": lambda: eqd.l_continuous(p, levels=17),
            }[name]()
            return recipe.loss(p, levels=17), expected

        (loss, terms), expected = both(denoiser, getkey())
        assert np.isclose(loss, expected, rtol=1e-5) and "simple" in terms
        assert (net is denoiser) == (name == "learned")
    first = denoiser.process.sigma(0.0) / denoiser.process.alpha(0.0)
    assert np.isclose(first, 0.4 * 2 / 16, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("example", [(1, 8, 8), (3, 32, 32), (3, 24, 40), (3, 27, 27)])
def test_networks_fit_any_example(preset, example):
    recipe = recipes.named("vp", preset)
    net = shapes(recipe, example)
    x = jax.ShapeDtypeStruct(example, jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    assert eqx.filter_eval_shape(lambda n, t, x: n(t, x), net, t, x).shape == example


@pytest.mark.slow
def test_an_untrained_score_has_the_scale_of_the_truth():
    """EDM's preconditioning and Song's division by σ start at a loss of about one everywhere."""
    for name in ("ve", "edm"):
        recipe = recipes.named(name, example=(1, 8, 8), small=True)
        net = recipe.network((1, 8, 8), key=jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 64)
        t, _ = recipe.timesteps.sample(recipe.timesteps.init(), 64, key=keys[0])

        @eqx.filter_jit
        def losses(net, recipe=recipe, t=t, keys=keys):
            def one(t, key):
                x0 = 0.5 * jax.random.normal(key, (1, 8, 8))
                p = eqd.predict(recipe.denoiser(net), t, x0, key=key)
                return eqd.score_matching(p, recipe.weighting)

            return jax.vmap(one)(t, keys)

        assert np.all(np.abs(np.asarray(losses(net)) - 1) < 1), name


def test_changes():
    recipe = recipes.iddpm(eqd.cosine_schedule(20))
    changes = eqd.train.Changes(steps=7, channels=64, dropout=0.0, ema=0.5, grad_clip=2.0)
    changed = recipe.changed(changes)
    assert changed.numbers() == recipe.numbers() | {
        "steps": 7,
        "channels": 64,
        "dropout": 0.0,
        "ema": repr(eqd.train.EMAWarmup(0.5)),
        "grad_clip": 2.0,
    }
    assert recipe.changed(eqd.train.Changes()) == recipe
    names = [f.name for f in dataclasses.fields(eqd.train.Changes)]
    assert set(names) == set(recipe.numbers())
    for name, value in (("steps", 0), ("learning_rate", -1e-3), ("dropout", 1.0), ("warmup", -1)):
        with pytest.raises(ValueError, match=name):
            recipe.changed(eqd.train.Changes(**{name: value}))


def test_optimisers_of_one_recipe_have_one_state():
    """So that a run can go on with another rate, clipping, warm-up or decay."""
    recipe = recipes.iddpm(eqd.cosine_schedule(20))
    params = {"w": jnp.ones((3,))}
    structures = {
        jax.tree.structure(recipe.changed(changes).optimiser().init(params))
        for changes in (
            eqd.train.Changes(),
            eqd.train.Changes(learning_rate=1e-5, warmup=10),
            eqd.train.Changes(cosine_decay=True, steps=100),
            eqd.train.Changes(grad_clip=0.1),
        )
    }
    assert len(structures) == 1


def test_the_learning_rate_rises_and_falls():
    recipe = recipes.named("vp", small=True).changed(
        eqd.train.Changes(steps=1000, warmup=50, learning_rate=0.1, grad_clip=1e9)
    )
    optimiser, params = recipe.optimiser(), {"w": jnp.zeros(())}
    state, seen = optimiser.init(params), []
    update = jax.jit(optimiser.update)
    for _ in range(1000):
        # Adam's steps under a constant gradient are the learning rate itself.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = update({"w": jnp.ones(())}, state, params)
        seen.append(-float(updates["w"]))
    assert seen[0] == 0 and np.isclose(seen[25], 0.05, rtol=1e-3)
    assert np.isclose(max(seen), 0.1, rtol=1e-3) and np.argmax(seen) in (50, 51)
    assert np.isclose(seen[525], 0.05, rtol=0.01) and seen[-1] < 1e-5


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match="expected a process of cosine"):
        recipes.named("ddpm")
    with pytest.raises(ValueError, match="a preset of iddpm"):
        recipes.named("vp", "unet")
    with pytest.raises(ValueError, match="only a schedule has steps"):
        recipes.named("vp", num_timesteps=100)
