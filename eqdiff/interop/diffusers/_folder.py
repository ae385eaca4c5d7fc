"""The files of a folder of diffusers.

`model.save_pretrained(folder)` writes `config.json` and `diffusion_pytorch_model.safetensors`, or
`.bin` with `safe_serialization=False`. With `variant="fp16"` the word stands before the last
ending, `diffusion_pytorch_model.fp16.safetensors`; of a large model there are several files
(`…-00001-of-00002.safetensors`) and an index, `….safetensors.index.json`, of which name is in
which. A pipeline has its network in `unet/`, its scheduler in `scheduler/` and the names of both in
`model_index.json`; a training script writes `checkpoint-500/unet` and `checkpoint-500/unet_ema`
into the folder of its pipeline.
"""

import json
import re
from pathlib import Path
from typing import Any

from ..._serialise import read_safetensors
from ..._shown import reason, shown
from ..files import read_torch, state_dict


WEIGHTS, CONFIG = "diffusion_pytorch_model", "config.json"
SCHEDULER, INDEX = "scheduler_config.json", "model_index.json"
# One file or the index of several; the word of a variant is before the last ending.
_NAME = re.compile(
    rf"{WEIGHTS}(\.(?P<word>[^.]+))?\.(?P<format>safetensors|bin)"
    r"(?P<index>\.index(\.(?P<index_word>[^.]+))?\.json)?"
)
_SHARD = re.compile(r"-\d+-of-\d+")


def network_folder(folder: Path) -> Path:
    """The folder of the network: `folder` or `unet` in it."""
    inner = folder / "unet"
    return inner if not (folder / CONFIG).is_file() and inner.is_dir() else folder


def network_config(folder: Path) -> dict[str, Any]:
    """What `config.json` holds."""
    path = folder / CONFIG
    if not path.is_file():
        if folder.is_file():
            raise NotADirectoryError(
                f"{folder} is a file, expected the folder that it is in, with config.json."
            )
        where = f"in {folder}, nor in a folder 'unet' in it" if folder.is_dir() else f"at {folder}"
        raise FileNotFoundError(f"no {CONFIG} {where}.")
    return read_json(path)


def scheduler_config(folder: Path) -> dict[str, Any]:
    """What the scheduler's configuration holds, of a network in `folder`."""
    # Next to the network, or in the pipeline that it is a part or a checkpoint of.
    upper = (folder / "scheduler", folder.parent / "scheduler", folder.parent.parent / "scheduler")
    places = [p / SCHEDULER for p in (folder, *upper, folder.parent)]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no {SCHEDULER} at {', '.join(map(str, places))}: without the scheduler's "
            "configuration nothing says what the network was trained on. If you know it, give it: "
            "load_diffusers(folder, scheduler={...})."
        )
    return read_json(found)


def pipeline_name(folder: Path) -> str | None:
    """The class in `model_index.json` of the pipeline that `folder` is, or is a part of."""
    for path in (folder / INDEX, folder.parent / INDEX, folder.parent.parent / INDEX):
        if path.is_file():
            name = read_json(path).get("_class_name")
            return name if isinstance(name, str) else shown(name)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """**Raises:** `ValueError` for what is not JSON or not a dictionary."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged: it is not JSON ({reason(e)}).") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a dictionary.")
    return value


def weights(folder: Path, variant: str | None) -> dict[str, Any]:
    """Names and arrays of the network in `folder`."""
    path = _weight_file(folder, variant)
    if path.name.endswith(".json"):
        return _shards(path)
    return _one_file(path)


def _one_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".bin":
        return dict(state_dict(read_torch(path), str(path)))
    return read_safetensors(path)[0]


def _weight_file(folder: Path, variant: str | None) -> Path:
    """The file of the weights, or the index of several."""
    found = _by_variant(folder)
    # Of several the plain one is that of full precision, which diffusers reads by default.
    if variant is None and len(found) == 1:
        return next(iter(found.values()))
    if variant in found:
        return found[variant]
    if found:
        have = ", ".join(shown(name) for name in found)
        raise FileNotFoundError(
            f"{folder} has the weights of the variants {have}"
            + (f", not of {shown(variant)}." if variant else ": give one of them as variant=.")
        )
    raise FileNotFoundError(f"no {WEIGHTS}.safetensors or {WEIGHTS}.bin in {folder}.")


def _by_variant(folder: Path) -> dict[str | None, Path]:
    """Every variant that is there, by its word; `None` for the one without."""
    found: dict[str | None, tuple[tuple[bool, bool], Path]] = {}
    for path in folder.glob(f"{WEIGHTS}.*"):
        match = _NAME.fullmatch(path.name)
        if match is None or _SHARD.search(path.name):
            continue
        word = match["word"] or match["index_word"]
        # The safer format first, and one file before several.
        rank = match["format"] == "bin", match["index"] is not None
        if word not in found or rank < found[word][0]:
            found[word] = rank, path
    return {word: path for word, (_, path) in found.items()}


def _shards(index: Path) -> dict[str, Any]:
    """The weights of every file that an index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise ValueError(f"{index} is damaged: expected 'weight_map' with a file for each name.")
    arrays: dict[str, Any] = {}
    for file in sorted(set(names.values())):
        # Never a file elsewhere.
        if Path(file).name != file or file in ("", ".", ".."):
            raise ValueError(f"{index} names {shown(file)}, expected a file in its folder.")
        path = index.parent / file
        if not path.is_file():
            raise FileNotFoundError(f"no file at {path}, which {index.name} names.")
        arrays |= _one_file(path)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{index} names {shown(missing)}, which none of its files has.")
    return arrays
