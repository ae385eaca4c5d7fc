"""Converting a file of another project: `python -m eqdiff.interop FILE --output model.safetensors`.

Without `--output` it says what it found and writes nothing. Arguments are read by the standard
library's argparse, so that converting needs nothing beyond what loading and saving need.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from .._denoiser import Denoiser
from .._process import Schedule
from .._serialise import save_model
from ..nn._ends import unwrapped
from .diffusers import load_diffusers
from .edm import load_edm
from .openai import load_guided_diffusion, load_improved_diffusion
from .openai._flags import CLASSIFIER_PRESETS, GUIDED_PRESETS, IMPROVED_PRESETS
from .score_sde import load_score_sde
from .score_sde._presets import SCORE_SDE_PRESETS


_PROJECTS = ("improved-diffusion", "guided-diffusion", "score_sde", "edm", "diffusers")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eqdiff.interop",
        description=(
            "Reads a model of another project, says what it is, and writes it as a file of eqdiff."
        ),
        epilog="Nothing in the file is executed.",
    )
    parser.add_argument("file", type=Path, help="the file, or the folder of diffusers")
    parser.add_argument(
        "--project", choices=_PROJECTS, help="who wrote it, if its name does not say"
    )
    parser.add_argument("--preset", help="the published model with its flags or configuration")
    parser.add_argument(
        "--flags",
        nargs="*",
        metavar="NAME=VALUE",
        help="the flags of OpenAI's scripts that it was trained with; alone, their defaults",
    )
    parser.add_argument("--config", type=Path, help="score_sde's configuration as a JSON file")
    parser.add_argument(
        "--output", type=Path, help="the file to write; without it nothing is written"
    )
    return parser


def _project(file: Path, preset: str | None) -> str:
    """Who wrote the file, by its name."""
    if file.is_dir():
        return "diffusers"
    for name in filter(None, (preset, file.stem)):
        if name in IMPROVED_PRESETS:
            return "improved-diffusion"
        if name in GUIDED_PRESETS:
            return "guided-diffusion"
        if name in CLASSIFIER_PRESETS:
            raise ValueError(
                f"{name} is a classifier, and eqdiff's files hold denoisers. Read it where you "
                "guide with it: eqdiff.interop.load_guided_diffusion_classifier."
            )
        if name in SCORE_SDE_PRESETS:
            return "score_sde"
    if file.suffix == ".pkl":
        return "edm"
    if file.suffix == ".pth" or file.name.startswith("checkpoint"):
        return "score_sde"
    raise ValueError(
        f"{file.name} does not say who wrote it: give --project, one of {', '.join(_PROJECTS)}."
    )


def _load(arguments: argparse.Namespace, project: str) -> Denoiser:
    file, preset = arguments.file, arguments.preset
    if project in ("improved-diffusion", "guided-diffusion"):
        load = load_improved_diffusion if project == "improved-diffusion" else load_guided_diffusion
        return load(file, _flags(arguments.flags), preset=preset)
    if arguments.flags is not None:
        raise ValueError(
            f"--flags are those of OpenAI's scripts, but the file is one of {project}."
        )
    if project == "score_sde":
        config: Any = preset
        if arguments.config is not None:
            config = json.loads(arguments.config.read_text(encoding="utf-8"))
        return load_score_sde(file, config)
    if preset is not None:
        raise ValueError(
            f"--preset does not go with a file of {project}, which says everything itself."
        )
    return load_edm(file) if project == "edm" else load_diffusers(file)


def _flags(pairs: Sequence[str] | None) -> dict[str, str] | None:
    if pairs is None:
        return None
    flags = {}
    for pair in pairs:
        name, equals, value = pair.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"flags are written NAME=VALUE, got {pair!r}.")
        flags[name] = value
    return flags


def describe(denoiser: Denoiser) -> str:
    """What a denoiser is, a part a line."""
    net: Any = denoiser.net
    inner = unwrapped(getattr(net, "net", net))
    size = sum(a.size for a in jax.tree.leaves(eqx.filter(net, eqx.is_array)))
    process = denoiser.process
    sizes = getattr(inner, "shape", inner)
    known = ("channels", "channel_mult", "num_res_blocks", "attention_downsamples", "num_classes")
    facts = ", ".join(f"{k}={getattr(sizes, k)}" for k in known if hasattr(sizes, k))
    if isinstance(process, Schedule):
        first, last = process.betas[0], process.betas[-1]
        time = f"a schedule of {process.num_steps} steps, β from {first:.3g} to {last:.3g}"
    else:
        time = str(process)
    c_noise = "the process's own" if denoiser.c_noise is None else str(denoiser.c_noise)
    return "\n".join(
        (
            f"network           {type(inner).__name__}({facts}), {size:,} parameters",
            f"process           {time}",
            f"parameterisation  {denoiser.parameterisation}",
            f"variance          {denoiser.variance}",
            f"c_noise           {c_noise}",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        # Checked before the work, which may take minutes.
        if arguments.output is not None and arguments.output.exists():
            raise FileExistsError(f"{arguments.output} exists, and is not overwritten.")
        if not arguments.file.exists():
            raise FileNotFoundError(f"no file at {arguments.file}.")
        project = arguments.project or _project(arguments.file, arguments.preset)
        denoiser = _load(arguments, project)
        print(f"{arguments.file}: a model of {project}\n{describe(denoiser)}")
        if arguments.output is not None:
            save_model(arguments.output, denoiser)
            print(f"wrote {arguments.output}, {arguments.output.stat().st_size / 2**20:.1f} MiB")
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
