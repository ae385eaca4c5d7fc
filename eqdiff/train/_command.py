"""A training program from the command line: flags, one sentence for what went wrong, a cache."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from .._failures import FailedExamples
from .._require import require
from ._checkpoint import CheckpointError
from ._exit import GracefulExit
from ._fit import Diverged
from ._processes import is_writer, num_processes
from ._run import Stopped


# What a user can mend: bad values, missing or damaged files, missing packages, unwritable folders.
_EXPECTED = (ValueError, OSError, ImportError, CheckpointError, Diverged, FailedExamples)


def command(main: Callable[..., Any]) -> None:
    """Runs a function whose parameters are its flags, as a program.

    The flags are made by [tyro](https://brentyi.github.io/tyro) (`pip install 'eqdiff[examples]'`).
    An error that the user can mend (a bad value, a missing file, a full disk) prints one sentence
    and exits with status 1, with the traceback too if `EQDIFF_DEBUG` is set. A signal prints one
    sentence that says what is saved, and exits with 128 + signal. Compiled programs are kept
    ([`eqdiff.train.compilation_cache`][]).

    **Arguments:**

    - `main`: a function with annotated parameters, or anything else that `tyro.cli` takes.

    **Example:**

    ```python
    def main(run_dir: str, *, steps: int = 1000):
        print(run_dir, steps)


    if __name__ == "__main__":
        eqd.train.command(main)
    ```
    """
    cli = require("tyro", "eqdiff.train.command", extra="examples").cli
    compilation_cache()
    with GracefulExit() as stop, stop.at_once(lambda: "stopped; nothing was being trained."):
        try:
            cli(main)
        except KeyboardInterrupt as error:
            # A run has handlers of its own, and says which signal it was.
            number = error.signal if isinstance(error, Stopped) else stop.signal
            number = number or signal.SIGINT
            _leave(f"\n{str(error) or f'{number.name}: stopped.'}", 128 + number)
        except _EXPECTED as error:
            if os.environ.get("EQDIFF_DEBUG"):
                raise
            _leave(f"error: {error}", 1)


def _leave(text: str, status: int) -> None:
    """Ends the process at once, with a last sentence.

    After an interrupted compilation Python's own way out waits for it, or crashes; among several
    processes it waits for those that wait for this one. What was being saved has been.
    """
    print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if not is_writer():
        # Process 0 serves the others: without it they would be ended with an error.
        os._exit(status)
    if num_processes() > 1:
        time.sleep(1)
    os._exit(status)


def resume_command() -> str:
    """The command line that continues this program: the one it was called with.

    Without `--overwrite`, which would begin anew, and `--from-step`, which would go back.

    **Example:**

    ```python
    print(f"To continue: {eqd.train.resume_command()}")
    ```
    """
    words, kept = iter(sys.argv), []
    for word in words:
        name, equals, _ = word.partition("=")
        if name == "--from-step" and not equals:
            next(words, None)
        elif name not in ("--overwrite", "--from-step"):
            kept.append(word)
    return shlex.join([sys.executable, *kept])


def compilation_cache(directory: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs on disk, so that a second start takes seconds.

    **Arguments:**

    - `directory`: where; by default the folder that `JAX_COMPILATION_CACHE_DIR` names, or
        `eqdiff/jax` in the user's cache.

    **Example:**

    ```python
    eqd.train.compilation_cache()  # before the first computation
    ```
    """
    if directory is None and jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(directory or home / "eqdiff" / "jax"))
