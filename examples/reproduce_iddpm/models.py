"""What is trained: five networks that differ in schedule, objective and times alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import eqdiff as eqd


# Objectives, `(prediction, levels) -> loss`.
def simple(prediction, levels):
    return eqd.l_simple(prediction)


def hybrid(prediction, levels):
    return eqd.l_hybrid(prediction, levels=levels)


def vlb(prediction, levels):
    return eqd.l_vlb(prediction, levels=levels)


class Model(NamedTuple):
    """How a network differs from the others; the variance is learned where the objective can."""

    schedule: Callable[[int], eqd.Schedule] = eqd.cosine_schedule
    objective: Callable[..., jax.Array] = hybrid
    timesteps: Callable[[eqd.Schedule], eqd.AbstractTimesteps] = eqd.Uniform


MODELS = {
    "linear L_simple": Model(eqd.linear_schedule, simple),
    "cosine L_simple": Model(objective=simple),
    "cosine L_hybrid": Model(),
    "cosine L_vlb": Model(objective=vlb),
    "cosine L_vlb, importance": Model(objective=vlb, timesteps=eqd.LossSecondMoment),
}

# Gradients are compared early in training too, where their mean is not yet lost in noise.
EARLY = "cosine L_hybrid, early"


class Trained(NamedTuple):
    """A network after its last step, and what it was trained with."""

    net: Any
    recipe: eqd.train.Recipe
    loss_fn: Callable
    metrics: Path

    @property
    def denoiser(self) -> eqd.Denoiser:
        return self.recipe.denoiser(self.net)


def recipe_of(
    name: str, num_timesteps: int, changes: eqd.train.Changes, *, small: bool
) -> eqd.train.Recipe:
    """Improved DDPM's recipe with the model's schedule, variance and times."""
    model = MODELS["cosine L_hybrid" if name == EARLY else name]
    schedule = model.schedule(num_timesteps)
    recipe = eqd.train.recipes.iddpm(schedule)
    return dataclasses.replace(
        (recipe.small() if small else recipe).changed(changes),
        variance=eqd.FixedLarge() if model.objective is simple else eqd.LearnedRange(),
        timesteps=model.timesteps(schedule),
        warmup=200,
        grad_clip=1.0,
    )


def loss_of(name: str, recipe: eqd.train.Recipe, levels: int) -> Callable:
    """The loss of one example, and the bound beside it."""
    objective = MODELS["cosine L_hybrid" if name == EARLY else name].objective

    def loss_fn(net, t, x0, args, *, key):
        # The classes in `args` condition nothing here.
        p = eqd.predict(recipe.denoiser(net), t, x0, key=key)
        return objective(p, levels), {"vlb": eqd.l_vlb(eqd.stop_mean(p), levels=levels)}

    return loss_fn


def train(
    name: str, recipe: eqd.train.Recipe, data: eqd.data.Dataset, settings: dict, folder: Path
) -> Trained:
    """Trains one model, from wherever it was."""
    print(f"\n== {name}")
    loss_fn, seed = loss_of(name, recipe, data.levels), settings["seed"]
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    net_key, key = jax.random.split(jax.random.key(seed))
    net = recipe.network(data.shape, compute_dtype=dtype, key=net_key)
    optimiser = recipe.optimiser()
    state = eqd.train.init(net, optimiser, timesteps=recipe.timesteps, ema=(recipe.ema,), key=key)
    batches = eqd.data.loader(data.train, recipe.batch_size, seed=seed)
    step, total = eqd.train.make_step(loss_fn, optimiser), recipe.num_steps
    settings = {"model": name, **settings, **recipe.numbers()}
    folder = folder / name.replace(",", "").replace(" ", "_")
    with eqd.train.Run(folder, settings, free=("data_dir", "steps")) as run:
        for state in eqd.train.fit(  # noqa: B020
            step,
            state,
            batches,
            num_steps=total,
            run=run,
            log_every=max(1, min(100, total // 100)),
            save_every=-(-total // 4),
        ):
            denoiser = recipe.denoiser(state.ema_net())
            eqd.save_model(run.folder / "model.safetensors", denoiser, overwrite=True)
    return Trained(state.ema_net(), recipe, loss_fn, run.metrics)
