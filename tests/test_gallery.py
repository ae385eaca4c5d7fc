"""The gallery's pages run, at small sizes, and their committed output is that of their code."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest


ROOT = pathlib.Path(__file__).parent.parent
GALLERY = ROOT / "docs" / "gallery"
PAGES = sorted(path.stem for path in GALLERY.glob("[!_]*.py"))

# Smaller sizes, so that a page runs in seconds: every left-hand side must still be on its page.
SMALLER = {
    "bring_a_model": {
        "channel_mult=(1, 2)": "channel_mult=(1,)",
        "attention_downsamples=(2,)": "attention_downsamples=(1,)",
        '"1,2"': '"1"',
        "num_steps = 2000": "num_steps = 3",
        "num_steps=1000)": "num_steps=3)",
        "Ancestral()": "Ancestral(3)",
        "held_out(100)": "held_out(4)",
    },
    "digits": {
        "cosine_schedule(1000)": "cosine_schedule(20)",
        "1500, (100, 300, 600)": "2, (1,)",
        "DDIM(50)": "DDIM(2)",
        "held_out(100)": "held_out(4)",
    },
    "eight_devices": {"num_steps=1500": "num_steps=3", "4096, (2,)": "16, (2,)"},
    "flow_matching": {
        "num_steps=8000": "num_steps=3",
        "draw_noise(50_000)": "draw_noise(20)",
        "batch_size=5000": "batch_size=20",
        "denoiser, 4000": "denoiser, 20",
    },
    "inverse": {
        "side, noise_std = 20": "side, noise_std = 8",
        "[5:15, 5:15]": "[2:6, 2:6]",
        "DDIM(50": "DDIM(2",
        "SDEDPMSolverPP(30)": "SDEDPMSolverPP(2)",
        "400": "4",
        "1000": "20",
        "(100": "(4",
        "measurement, 100": "measurement, 4",
    },
    "likelihood": {
        "channel_mult=(1, 2)": "channel_mult=(1,)",
        "num_steps = 1000": "num_steps = 3",
        # The two between run the same code.
        "in recipes.items()}": "in [*recipes.items()][::3]}",
        "data.held_out()": "data.held_out(20)",
        "10, 31)": "10, 3)",
    },
    "simulator": {
        "num_steps = 6000": "num_steps = 3",
        "20_000": "200",
        "num = 1000": "num = 20",
        "DDIM(60": "DDIM(4",
        "simulate(400)": "simulate(40)",
        "num_draws=19": "num_draws=4",
    },
    "three_views": {
        "num_steps = 6000": "num_steps = 3",
        "cosine_schedule(1000)": "cosine_schedule(20)",
        "denoiser, 1000": "denoiser, 20",
        "draw(1000)": "draw(20)",
    },
    "two_moons": {
        "num_steps = 5000": "num_steps = 3",
        "denoiser, 1000": "denoiser, 20",
        "2.5, 100)": "2.5, 10)",
        "    100, 100": "    10, 10",
    },
    "which_sampler": {"(6, 10, 20, 40)": "(6, 7, 8, 9)", "denoiser, 600": "denoiser, 6"},
}


@pytest.fixture(scope="module")
def runner():
    pytest.importorskip("jupytext")
    spec = importlib.util.spec_from_file_location("gallery_run", GALLERY / "_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAGES)
def test_the_output_is_that_of_the_code(runner, name):
    path = GALLERY / f"{name}.py"
    record = json.loads((runner.ASSETS / f"{name}.json").read_text())
    assert record["code"] == runner.digest(path), f"run `python docs/gallery/_run.py {name}` again"
    kinds = [kind for kind, _ in runner.cells(path)]
    assert kinds[0] == "markdown"
    assert len(record["outputs"]) == kinds.count("code")
    for output in record["outputs"]:
        for figure in output["figures"]:
            for theme in ("light", "dark"):
                assert (runner.ASSETS / f"{figure}-{theme}.png").exists()


def test_every_page_has_its_place():
    index, nav = (GALLERY / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for name in PAGES:
        assert f"({name}.md)" in index
        assert f"gallery/{name}.md" in nav


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs(name, tmp_path):
    code = (GALLERY / f"{name}.py").read_text()
    for large, small in SMALLER[name].items():
        assert large in code
        code = code.replace(large, small)
    (tmp_path / "page.py").write_text(code)
    env = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "0"}
    # A page at this size compiles far longer than it runs; this halves it.
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    command = [sys.executable, "page.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
