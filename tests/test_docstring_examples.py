"""Every public class and function shows an example in its docstring, and every example runs.

An example is the block of Python under `**Example:**`: a few lines that a reader can paste after
the imports below. The flat names of `eqdiff` are tested room by room, the others by namespace.
"""

import functools
import pathlib
import re
import textwrap

import jax
import pytest
from conventions import definition, exports, NAME, public_modules, read_package
from test_docs import as_a_reader


PACKAGE = read_package(pathlib.Path(__file__).parent.parent)
IMPORTS = "import equinox as eqx, jax, jax.numpy as jnp\nimport eqdiff as eqd\n"
LINES = 9

_EXAMPLE = re.compile(r"^( *)\*\*Example:\*\*\n\n\1```python\n(.*?)^\1```$", re.DOTALL | re.M)

# Networks are large, and compiled for minutes: their examples make shapes, no numbers.
TRACED = {"nn", "nn.presets", "operators"}
# Rooms whose examples take many seconds.
SLOW = {
    *("_bound", "_deferred", "_guidance", "_likelihood", "_map", "_sampler", "_timesteps"),
    *("_trace", "terms", "nn", "nn.presets", "train", "data", "metrics", "interop"),
}

# Examples that need what the tests do not have: the network, a file, another framework, a cluster.
NOT_RUN = frozenset(
    f"eqdiff.{room}.{name}"
    for room, names in {
        "data": "DownloadError cifar10 fetch_cifar10 find_cifar10",
        "interop": "diffusers_network edm_network load_diffusers load_diffusers_pipeline load_edm "
        "load_guided_diffusion load_guided_diffusion_classifier load_improved_diffusion "
        "load_score_sde openai_classifier openai_unet read_flax read_torch save_diffusers "
        "score_sde_network",
        "metrics": "EfficientNetLite InceptionV3 efficientnet_lite0 inception_v3",
        "train": "WandB compilation_cache start_processes",
    }.items()
    for name in names.split()
)


def example(docstring: str | None) -> str | None:
    """The block under `**Example:**`."""
    found = _EXAMPLE.search(docstring or "")
    return textwrap.dedent(found[2]) if found else None


def _rooms() -> dict[str, dict[str, str | None]]:
    """Room or namespace -> public name -> docstring."""
    modules, rooms = public_modules(PACKAGE), {}
    for module in modules:
        for name, source in exports(PACKAGE, module).items():
            full = f"{module}.{name}"
            if full in modules or name.startswith("Abstract"):
                continue
            where = definition(PACKAGE, source, name)
            parts = source.split(".")[1:2] if module == NAME else module.split(".")[1:]
            rooms.setdefault(".".join(parts), {})[full] = where[1] if where else None
    return rooms


ROOMS = _rooms()


def test_every_name_has_an_example():
    texts = {name: text for names in ROOMS.values() for name, text in names.items()}
    assert len(texts) > 100
    assert [name for name, text in texts.items() if example(text) is None] == []


@pytest.mark.parametrize(
    "room", [pytest.param(room, marks=[pytest.mark.slow] * (room in SLOW)) for room in ROOMS]
)
def test_examples_run(room, tmp_path, monkeypatch):
    for name, docstring in ROOMS[room].items():
        code = example(docstring)
        assert code is not None, name
        assert name.split(".")[-1] in code, f"{name}: its example shows something else"
        assert len(code.splitlines()) <= LINES, f"{name}: its example is too long"
        program = compile(IMPORTS + code, f"example of {name}", "exec")
        if name in NOT_RUN:
            continue
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with as_a_reader():
            if room in TRACED:
                jax.eval_shape(functools.partial(exec, program, {"__name__": "example"}))
            else:
                exec(program, {"__name__": "example"})


def test_examples_are_found():
    docstring = "A.\n\n    **Example:**\n\n    ```python\n    x = 1\n    y = 2\n    ```\n\n    B."
    assert example(docstring) == "x = 1\ny = 2\n"
    assert example("A.\n\n```python\nx = 1\n```") is None


def test_the_tables_speak_of_names():
    assert set(ROOMS) >= TRACED | SLOW
    assert {name for names in ROOMS.values() for name in names} >= NOT_RUN
