"""Scores a run of train_cifar.py in bits/dim, both ways: `python examples/likelihood.py RUN`.

`--help` lists the flags.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from _run import compilation_cache, EXPECTED, fail, load, load_data, num_classes_of
from _score import both_bits

import eqdiff as eqd


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Bits per dimension of held-out images: the variational bound, and the likelihood of the
    probability flow."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that train_cifar.py wrote."""
    num: int = 200
    """How many held-out images."""
    bound_terms: int = 64
    """Terms of the variational bound per image, from 2 up to two for each step of the schedule."""
    dequantise: Literal["gaussian", "uniform"] = "gaussian"
    """For the probability flow: gaussian for networks trained on the grid of pixel values (what
    train_cifar.py trains), uniform for networks trained on dequantised data."""
    tolerance: float = 1e-3
    """Relative and absolute tolerance of the flow's solver."""
    batch_size: int = 50
    """Images at once."""
    seed: int = 0
    """Of times, noise and probes."""
    data_dir: Path | None = None
    """Where the data are, if not where training found them."""


def main(options: Likelihood) -> None:
    compilation_cache()
    denoiser, settings = load(options.run)
    if options.num < 1 or options.batch_size < 1:
        raise ValueError(
            f"--num {options.num}, --batch-size {options.batch_size}: expected at least 1."
        )
    data = load_data(settings, options.data_dir)
    make = {"gaussian": eqd.GaussianDequantisation, "uniform": eqd.UniformDequantisation}
    bound, flow, num = both_bits(
        denoiser,
        data,
        options.num,
        conditional=num_classes_of(denoiser) is not None,
        terms=options.bound_terms,
        dequantise=make[options.dequantise](data.levels),
        tolerance=options.tolerance,
        key=jax.random.key(options.seed),
        batch_size=options.batch_size,
    )
    print(f"{num} held-out images of {data.name}, {data.levels} grey levels; ± one standard error")
    print(f"variational bound  {bound} bits/dim ({options.bound_terms} terms an image)")
    print(f"probability flow   {flow} bits/dim ({options.dequantise} dequantisation)")
    print(json.dumps({"bound": bound.value, "flow": flow.value}))


if __name__ == "__main__":
    try:
        main(tyro.cli(Likelihood))
    except EXPECTED as error:
        fail(error)
