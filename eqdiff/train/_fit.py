r"""The training loop: steps, a log, checkpoints, and an orderly end.

A generator keeps the loop its caller's: it takes steps until there is something to look at, a
state that has just been saved, and yields it. What happens then, pictures, evaluation, a model
file, is the body of the caller's `for`.

Steps are dispatched without waiting for the device; the loop waits once per line of the log. A
step with a NaN or infinite loss leaves the state as it was, so the loop can report it there,
before the state is lost.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from .._check import whole
from .._require import require
from ._chip import device_memory, peak_flops
from ._compiled import Step
from ._metrics import StepMetrics, summarise
from ._processes import any_process
from ._run import Run, Stopped
from ._state import TrainState


# Steps between two agreements of several processes on whether to stop.
_AGREE_EVERY = 10


class Diverged(ArithmeticError):
    """The loss has become NaN or infinite; the message says where the run can continue from.

    **Example:**

    ```python
    try:
        raise eqd.train.Diverged("the loss became NaN")  # `fit` does
    except eqd.train.Diverged as error:
        print(error)
    ```
    """


def fit(
    step: Step,
    state: TrainState,
    batches: Iterable[Any],
    *,
    num_steps: int,
    run: Run,
    log_every: int = 100,
    save_every: int = 5000,
    max_spoilt: int = 0,
    progress: bool = True,
) -> Iterator[TrainState]:
    """Trains up to a number of steps, from wherever the run is.

    It yields the state after every save and at the end, even if the run had ended before. A state
    that was saved but not yielded before an interruption is yielded when the run continues: once
    the loop has finished, everything that its body writes is there. The next step donates the
    yielded state; `state.ema_net()` and `state.net` are copies.

    A line of metrics holds the means over its window ([`eqdiff.train.summarise`][]),
    `images_per_second`, and on chips that are known `memory_bytes`, the most that was in use on one
    of them, and `fraction_of_peak`, of their products in bfloat16.

    **Arguments:**

    - `step`: from [`eqdiff.train.make_step`][].
    - `state`: a fresh one, from [`eqdiff.train.init`][]. If the run has a checkpoint, its state is
        restored in the place of this one.
    - `batches`: an iterator of pairs `(x0, args)`, such as [`eqdiff.data.loader`][] makes. One with
        `get_state` and `set_state` continues exactly where it was.
    - `num_steps`: of the whole run. Raise it to continue a finished run.
    - `run`: where to log and save.
    - `log_every`, `save_every`: steps between two lines of metrics, and between two checkpoints.
    - `max_spoilt`: how many steps in all may have a NaN or infinite loss or gradient. They change
        nothing, and a message names each.
    - `progress`: shows a bar, and says when the step is compiled.

    **Raises:** [`eqdiff.train.Diverged`][]; [`eqdiff.train.Stopped`][] after a signal;
    [`eqdiff.train.CheckpointError`][]; `ValueError` for numbers below 1 or a run that is beyond
    `num_steps`.

    **Example:**

    ```python
    import optax
    optimiser, times = optax.adam(1e-3), eqd.Uniform(eqd.VPSDE())
    state = eqd.train.init(jnp.zeros(2), optimiser, timesteps=times, key=jax.random.key(0))
    step = eqd.train.make_step(lambda m, t, x0, args, key: (((m - x0) ** 2).sum(), {}), optimiser)
    batches = [(jnp.ones((8, 2)), None)] * 4
    with eqd.train.Run("runs/mean", {"rate": 1e-3}) as run:
        for state in eqd.train.fit(step, state, batches, num_steps=4, run=run):
            print(state.net)  # after every save: pictures, evaluation, a model file
    ```
    """
    num_steps = whole("fit", "num_steps", num_steps)
    log_every = whole("fit", "log_every", log_every)
    save_every = whole("fit", "save_every", save_every)
    max_spoilt = whole("fit", "max_spoilt", max_spoilt, least=0)
    state, resumed = run.restore(state, batches)
    first = int(state.step)
    if first > num_steps:
        raise ValueError(
            f"fit(num_steps={num_steps}): the run in {run.folder} is at step {first} already. "
            "Raise num_steps, or choose another folder."
        )
    if resumed is not None and progress:
        print(f"Resuming {run.folder} at step {first} of {num_steps}.")
    if resumed is not None and run.seen() < first < num_steps:
        # It was saved and then interrupted, before or while it was looked at.
        yield state
        run.see(first)
    loop = _Loop(step, batches, run, log_every, max_spoilt, progress)
    with _bar(num_steps, first, progress) as bar:
        while (now := int(state.step)) < num_steps:
            until = min(num_steps, (now // save_every + 1) * save_every)
            with run.exit.deferred():
                state = loop.advance(state, now, until, bar)
                run.checkpoints.save_in_background(int(state.step), state, run.extra(batches))
                loop.end()
            if loop.exhausted or until == num_steps:
                break
            yield state
            run.see(until)
            loop.rest()
    run.checkpoints.wait()
    yield state
    run.see(int(state.step))


class _Loop:
    """What is remembered from step to step."""

    def __init__(
        self,
        step: Step,
        batches: Iterable[Any],
        run: Run,
        log_every: int,
        max_spoilt: int,
        progress: bool,
    ):
        self.step, self.batches, self.run = step, iter(batches), run
        self.log_every, self.max_spoilt, self.progress = log_every, max_spoilt, progress
        self.pending: list[StepMetrics] = []
        self.images, self.spoilt = 0, 0
        self.flops: float | None = None
        self.compiled = self.stopping = self.exhausted = False
        self.broken: Exception | None = None
        self.since = time.monotonic()

    def rest(self) -> None:
        """Time passed that was not training."""
        self.since = time.monotonic()

    def advance(self, state: TrainState, now: int, until: int, bar: Any) -> TrainState:
        """Steps until a save is due or there is a reason to end, which `end` tells."""
        for number in range(now + 1, until + 1):
            try:
                batch = next(self.batches)
            except StopIteration:
                self.exhausted = True
                bar.write(f"The batches ended after {number - 1} steps.")
                break
            except Exception as error:
                if jax.process_count() > 1:
                    # The others are in the next step already, and would not take part in a save.
                    raise
                # The state is good: it is saved before the error is raised.
                self.broken = error
                break
            state = self.take(state, batch, bar)
            bar.update()
            if number % self.log_every == 0:
                self.log(number, bar)
            self.stopping = self.asked(number)
            if self.stopping:
                break
        self.log(int(state.step), bar)
        return state

    def end(self) -> None:
        """**Raises:** `Stopped`, or what the batches raised, once the state is on disk."""
        if self.stopping or self.broken is not None:
            self.run.checkpoints.wait()
        if self.broken is not None:
            raise self.broken
        if self.stopping:
            raise Stopped(self.run.exit.signal, self.run.safe())

    def take(self, state: TrainState, batch: Any, bar: Any) -> TrainState:
        size = np.shape(jax.tree.leaves(batch)[0])[0]
        if not self.compiled:
            self.compile(state, batch, bar)
        state, metrics = self.step(state, batch)
        self.pending.append(metrics)
        self.images += size * jax.process_count()
        return state

    def compile(self, state: TrainState, batch: Any, bar: Any) -> None:
        """Before the first step. Nothing is lost by a signal here, so it may end at once."""
        bar.set_description("compiling the training step")
        with self.run.exit.at_once(self.run.safe):
            cost = self.step.compile(state, batch)
        bar.set_description("training")
        if self.progress:
            bar.write(f"Compiled the training step in {cost.seconds:.0f} s.")
        self.run.seconds["compilation"] += cost.seconds
        self.flops = cost.flops
        self.compiled = True
        self.rest()

    def asked(self, number: int) -> bool:
        """Whether to stop. Several processes must stop after the same step."""
        if jax.process_count() == 1:
            return self.run.exit.requested
        return number % _AGREE_EVERY == 0 and any_process(self.run.exit.requested, "stop")

    def log(self, number: int, bar: Any) -> None:
        """Waits for the steps since the last line, checks them and logs them."""
        if not self.pending:
            return
        steps, self.pending = self.pending, []
        summary = summarise(steps)
        elapsed = time.monotonic() - self.since
        self.check(number, steps, summary, bar)
        self.run.seconds["training"] += elapsed
        self.run.seconds["images"] += self.images
        summary |= self.speed(len(steps), elapsed)
        self.images = 0
        self.run.write(number, summary)
        self.rest()
        bar.set_postfix(
            loss=f"{summary['loss']:.4f}", images_s=f"{summary['images_per_second']:.0f}"
        )

    def speed(self, steps: int, elapsed: float) -> dict[str, Any]:
        speed = {"images_per_second": self.images / max(elapsed, 1e-9)}
        memory, peak = device_memory(), peak_flops()
        if memory is not None:
            speed["memory_bytes"] = memory.peak
        if peak is not None and self.flops is not None:
            speed["fraction_of_peak"] = steps * self.flops / (elapsed * peak * jax.device_count())
        return speed

    def check(
        self, number: int, steps: list[StepMetrics], summary: dict[str, Any], bar: Any
    ) -> None:
        """**Raises:** `Diverged` if more steps were spoilt than may be."""
        if not summary["nonfinite"]:
            return
        bad = np.concatenate([np.atleast_1d(m.nonfinite) for m in jax.device_get(steps)])
        names = ", ".join(str(number - len(bad) + 1 + i) for i in np.flatnonzero(bad)[:5])
        self.spoilt += int(summary["nonfinite"])
        if self.spoilt <= self.max_spoilt:
            bar.write(
                f"The loss or the gradient of step {names} was NaN or infinite and changed nothing."
            )
            return
        self.run.checkpoints.wait()
        raise Diverged(
            f"the loss or the gradient became NaN or infinite (step {names}). "
            f"{_way_back(self.run.checkpoints.steps())}"
        )


def _way_back(steps: Sequence[int]) -> str:
    if not steps:
        return "There is no checkpoint yet: begin anew with a lower learning rate."
    before = (
        ""
        if len(steps) == 1
        else f" If that leads here again, go on from step {steps[-2]} (from_step={steps[-2]})."
    )
    return (
        f"The last good checkpoint is of step {steps[-1]}: go on from it with a lower learning "
        f"rate, a smaller clipping threshold or in float32 (adjust).{before}"
    )


def _bar(num_steps: int, first: int, shown: bool) -> Any:
    tqdm = require("tqdm", "fit", extra="data").tqdm
    return tqdm(
        total=num_steps,
        initial=first,
        unit="step",
        desc="training",
        smoothing=0.05,
        disable=not shown,
    )
