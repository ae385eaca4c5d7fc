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
from .._shown import reason, shown
from ..nn._ends import unwrapped
from .diffusers import load_diffusers
from .edm import load_edm
from .openai import load_guided_diffusion, load_improved_diffusion
from .openai._flags import CLASSIFIER_PRESETS, GUIDED_PRESETS, IMPROVED_PRESETS
from .score_sde import load_score_sde
from .score_sde._presets import SCORE_SDE_PRESETS


_OPENAI = ("improved-diffusion", "guided-diffusion")
_PROJECTS = (*_OPENAI, "score_sde", "edm", "diffusers")
# Whose each option is.
_OWNERS = {
    "preset": (*_OPENAI, "score_sde"),
    "flags": _OPENAI,
    "config": ("score_sde",),
    "scheduler": ("diffusers",),
    "variant": ("diffusers",),
}
# What the loaders say to write, and what that is here.
_WORDS = (
    (
        ", flags={'noise_schedule': 'cosine', ...}, with flags={} for its defaults; or the name of "
        "a published file, preset=...",
        ", --flags image_size=64 noise_schedule=cosine, or --flags alone for its defaults; or the "
        "name of a published file, --preset NAME.",
    ),
    ("give it: load_diffusers(folder, scheduler={...}).", "give it: --scheduler FILE.json."),
    ("give one of them as variant=.", "give one of them as --variant."),
    ("give a config without them", "delete them from config.json"),
    ("give a scheduler without them", "give one without them: --scheduler FILE.json"),
)


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
        "--scheduler", type=Path, help="diffusers' scheduler, if it is not next to the network"
    )
    parser.add_argument("--variant", help="of diffusers' files of weights, such as fp16")
    parser.add_argument(
        "--output", type=Path, help="the file to write; without it nothing is written"
    )
    return parser


def _project(file: Path, preset: str | None) -> str:
    """Who wrote the file, by its name."""
    if file.is_dir():
        return "diffusers"
    if (file.parent / "config.json").is_file() and file.suffix in (".json", ".safetensors", ".bin"):
        raise ValueError(
            f"{file} is a part of a model of diffusers: give its folder, {file.parent}."
        )
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


def _check(arguments: argparse.Namespace, project: str) -> None:
    """Raises `ValueError` for options of another project, or too few of them."""
    for option, owners in _OWNERS.items():
        if getattr(arguments, option) is not None and project not in owners:
            whose = "OpenAI's scripts" if owners is _OPENAI else ", ".join(owners)
            raise ValueError(f"--{option} is for files of {whose}, but this is one of {project}.")
    file = arguments.file
    if project != "diffusers" and file.is_dir():
        raise ValueError(f"{file} is a folder, expected a file of {project}.")
    if project == "diffusers" and not file.is_dir():
        raise ValueError(
            f"{file} is a file, expected the folder of a model of diffusers, with config.json."
        )
    if project != "score_sde":
        return
    if arguments.preset is not None and arguments.config is not None:
        raise ValueError("--preset and --config both say how it was trained: give one of them.")
    if arguments.preset is None and arguments.config is None:
        name = "/".join(file.absolute().parts[-3:-1])
        if name not in SCORE_SDE_PRESETS:
            raise ValueError(
                f"{file} does not say how it was trained, and is not in a folder called like a "
                "published configuration. Give the configuration, --config FILE.json, or the name "
                "of a published one, such as --preset ve/cifar10_ncsnpp_continuous."
            )


def _load(arguments: argparse.Namespace, project: str) -> Denoiser:
    _check(arguments, project)
    file, preset = arguments.file, arguments.preset
    if project in _OPENAI:
        load = load_improved_diffusion if project == "improved-diffusion" else load_guided_diffusion
        return load(file, _flags(arguments.flags), preset=preset)
    if project == "score_sde":
        return load_score_sde(file, preset or _dictionary("config", arguments.config))
    if project == "edm":
        return load_edm(file)
    scheduler = _dictionary("scheduler", arguments.scheduler)
    return load_diffusers(file, scheduler=scheduler, variant=arguments.variant)


def _dictionary(option: str, path: Path | None) -> dict[str, Any] | None:
    """What a JSON file holds."""
    if path is None:
        return None
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is not there"
        raise ValueError(f"--{option} {path} {kind}, expected a JSON file.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"--{option} {path} is not JSON ({reason(e)}).") from e
    if not isinstance(value, dict):
        raise ValueError(f"--{option} {path} holds {shown(value)}, expected a dictionary.")
    return value


def _flags(pairs: Sequence[str] | None) -> dict[str, str] | None:
    if pairs is None:
        return None
    flags = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--flags are written NAME=VALUE, got {pair!r}.")
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


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        hint = ""
        if arguments.flags is not None:
            hint = "; --flags are written without dashes, NAME=VALUE, after one --flags"
        parser.error(f"unknown arguments: {' '.join(unknown)}{hint}")
    return arguments


def _check_output(output: Path) -> None:
    """Before the work, which may take minutes."""
    if output.exists():
        raise FileExistsError(f"{output} exists, and is not overwritten.")
    above = next(path for path in output.absolute().parents if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{output} cannot be written: {above} is a file.")


def _said(error: Exception) -> str:
    """What an error says, in the words of the shell."""
    if isinstance(error, OSError) and error.strerror:
        # Ours say which file it is.
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}"
    text = str(error)
    for python, shell in _WORDS:
        text = text.replace(python, shell)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _arguments(argv)
    try:
        if arguments.output is not None:
            _check_output(arguments.output)
        if not arguments.file.exists():
            raise FileNotFoundError(f"no file at {arguments.file}.")
        project = arguments.project or _project(arguments.file, arguments.preset)
        denoiser = _load(arguments, project)
        print(f"{arguments.file}: a model of {project}\n{describe(denoiser)}")
        if arguments.output is not None:
            save_model(arguments.output, denoiser)
            print(f"wrote {arguments.output}, {arguments.output.stat().st_size / 2**20:.1f} MiB")
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {_said(e)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
