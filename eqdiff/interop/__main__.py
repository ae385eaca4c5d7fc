"""Converting a file of another project into one of eqdiff: `python -m eqdiff.interop FILE --output model.safetensors`.

Without `--output` it says what it found and writes nothing. Arguments are read by the standard library's argparse, so that converting
needs nothing beyond what loading and saving need.
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
from .._schedule import Schedule
from .._serialise import save_model
from ._load_diffusers import load_diffusers
from ._load_edm import load_edm
from ._load_openai import load_guided_diffusion, load_improved_diffusion
from ._load_score_sde import load_score_sde
from ._openai_flags import CLASSIFIER_PRESETS, GUIDED_PRESETS, IMPROVED_PRESETS
from ._score_sde_presets import SCORE_SDE_PRESETS


_PROJECTS = ("improved-diffusion", "guided-diffusion", "score_sde", "edm", "diffusers")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eqdiff.interop",
        description="Reads a model of another project, says what it is, and writes it as a file of eqdiff.",
        epilog="Nothing of the file is executed.",
    )
    parser.add_argument("file", type=Path, help="the file, or the folder of diffusers")
    parser.add_argument(
        "--project", choices=_PROJECTS, help="who wrote it, where its name does not say"
    )
    parser.add_argument("--preset", help="the published model whose flags or configuration it has")
    parser.add_argument(
        "--flags",
        nargs="*",
        metavar="NAME=VALUE",
        help="the flags of OpenAI's scripts that it was trained with; without values their defaults",
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
                f"{name} is a classifier, and eqdiff's files hold denoisers. Read it where you guide with it: "
                "eqdiff.interop.load_guided_diffusion_classifier."
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
            f"--preset says nothing about a file of {project}, which says all by itself."
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
    inner = getattr(net, "net", net)
    arrays = jax.tree.leaves(eqx.filter(net, eqx.is_array))
    process = denoiser.process
    known = ("channels", "channel_mult", "num_res_blocks", "attention_downsamples", "num_classes")
    facts = ", ".join(f"{k}={getattr(inner, k)}" for k in known if hasattr(inner, k))
    if isinstance(process, Schedule):
        time = f"a chain of {process.num_steps} steps, β from {process.betas[0]:.3g} to {process.betas[-1]:.3g}"
    else:
        time = str(process)
    label = "the process's own" if denoiser.label is None else str(denoiser.label)
    return "\n".join(
        (
            f"network           {type(net).__name__}({facts}), {sum(a.size for a in arrays):,} parameters",
            f"process           {time}",
            f"parameterisation  {denoiser.parameterisation}",
            f"variance          {denoiser.variance}",
            f"time label        {label}",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        # Before the work, which may take minutes.
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
