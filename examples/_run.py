"""The folder of a run: what is in it, and whether a command starts, resumes or refuses it."""

import json
import os
import shutil
import sys
from pathlib import Path

import jax
from _config import Config, differences, flat

import eqdiff as eqd
from eqdiff.data import Dataset


# What a run writes; --overwrite removes these and nothing else.
_FILES = ("metrics.jsonl", "model.safetensors", "report.md", "report.json")
_FOLDERS = ("checkpoints", "samples", "tensorboard")


class Run:
    """A run's folder."""

    def __init__(self, config: Config):
        assert config.output.run_dir is not None
        self.folder: Path = config.output.run_dir
        self.checkpointer = eqd.train.Checkpointer(self.folder / "checkpoints", keep=2)

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def open(self, config: Config, data: Dataset) -> bool:
        """Prepares the folder; says whether there is a run to resume.

        Raises `ValueError` if the folder holds a run of other settings, or files that are no run's.
        """
        saved = self.folder / "config.json"
        if not saved.exists() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} exists, is not empty and holds no run: choose another with "
                "--run-dir."
            )
        if saved.exists() and config.output.overwrite:
            self._remove()
        elif saved.exists():
            try:
                differ = differences(json.loads(saved.read_text()), config)
            except json.JSONDecodeError as e:
                raise ValueError(
                    f"{saved} is damaged ({e}); --overwrite starts anew, or restore the file."
                ) from e
            if differ:
                raise ValueError(
                    f"{self.folder} holds a run of other settings: {'; '.join(differ)}. Choose "
                    "another folder with --run-dir, or start anew with --overwrite."
                )
        self.checkpointer.check_writable()
        settings = {**flat(config), "shape": data.shape, "levels": data.levels}
        write_text(saved, json.dumps(settings, indent=2) + "\n")
        return self.checkpointer.latest_step() is not None

    def _remove(self) -> None:
        for name in _FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in _FILES:
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.glob("*.png"):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def load(folder: Path) -> tuple[eqd.Denoiser, dict]:
    """The model of a run and the settings it was trained with, for sample.py and likelihood.py."""
    settings = folder / "config.json"
    if not settings.is_file():
        raise FileNotFoundError(
            f"{folder} holds no run (no config.json); give the folder that train_cifar.py wrote."
        )
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} has no model.safetensors yet: the run saved none.")
    return eqd.load_model(folder / "model.safetensors"), json.loads(settings.read_text())


def num_classes_of(denoiser: eqd.Denoiser) -> int | None:
    """How many classes the network knows; `None` if it is not class-conditional."""
    assert isinstance(denoiser.net, eqd.nn.UNet)
    return denoiser.net.shape.num_classes


def load_data(settings: dict, data_dir: Path | None) -> Dataset:
    """The data set a run was trained on, from where it was found then or from another folder."""
    where = settings["data_dir"] if data_dir is None else data_dir
    if settings["dataset"] == "folder":
        return eqd.data.image_folder(where, image_size=settings["image_size"])
    return eqd.data.digits() if settings["dataset"] == "digits" else eqd.data.cifar10(where)


def compilation_cache() -> None:
    """Keeps compiled programs between runs, so that a second start takes seconds.

    In the folder that JAX_COMPILATION_CACHE_DIR names, or in the user's cache.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "eqdiff" / "jax"))


def fail(error: BaseException) -> None:
    """One sentence for what the user can mend; the whole story with EQDIFF_DEBUG=1."""
    if os.environ.get("EQDIFF_DEBUG"):
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


# What a user can mend: bad values, missing or damaged files, missing packages, unwritable folders.
EXPECTED = (ValueError, OSError, ImportError, eqd.train.CheckpointError)
