"""Every block of Python in the README and the documentation runs, as a reader would run it.

The blocks of a page share a namespace, in order. A page that is a script runs as printed but for
its sizes; the snippets of a reference page start from the names that their text speaks of.
"""

import contextlib
import pathlib

import jax
import pytest
from conventions import code_blocks


ROOT = pathlib.Path(__file__).parent.parent
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {
    str(path.relative_to(ROOT)): blocks
    for path in PATHS
    if (blocks := code_blocks(path.read_text()))
}

# What the snippets of a page speak of without having made it.
COMMON = """
import diffrax, equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax
import eqdiff as eqd
key = jax.random.key(0)
schedule = eqd.cosine_schedule(20)
net = eqd.nn.MLP(2, 2, width=8, depth=1, key=key)
denoiser = eqd.Denoiser(net, schedule)
images = jnp.asarray([[-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
image = images[0]
x1 = jax.random.normal(key, (2,))
"""
CONDITIONAL = "conditional = eqd.Denoiser(eqd.nn.MLP(2, 2, num_classes=11, key=key), eqd.VPSDE())\n"
TRAINING = """
net = eqd.nn.MLP(2, 2, width=8, depth=1, key=key)
def loss_fn(net, t, x0, args, *, key):
    return eqd.l_simple(eqd.predict(eqd.Denoiser(net, schedule), t, x0, args, key=key)), {}
loader = [(jnp.zeros((4, 2)), None)] * 2
"""
BEFORE = {
    "docs/api/bound.md": COMMON,
    "docs/api/denoisers.md": COMMON,
    "docs/api/guidance.md": COMMON + CONDITIONAL,
    "docs/api/likelihood.md": COMMON + "denoiser = eqd.GaussianDenoiser(schedule)\n",
    "docs/api/losses.md": COMMON,
    "docs/api/nn.md": COMMON + "import eqdiff\nargs, x, c_noise = None, x1, jnp.float32(500)\n",
    "docs/api/processes.md": COMMON,
    "docs/api/samplers.md": COMMON,
    "docs/api/schedules.md": COMMON,
    "docs/api/serialise.md": COMMON,
    "docs/api/terms.md": COMMON,
    "docs/api/train.md": COMMON + TRAINING,
    "docs/recipes.md": "import diffrax\n",
}

# Smaller sizes, so that a page runs in seconds: every left-hand side must still be on its page.
SMALLER = {
    "README.md": {
        "cosine_schedule(1000)": "cosine_schedule(20)",
        "range(1000)": "range(2)",
        "DDIM(50)": "DDIM(2)",
        "(denoiser), 64": "(denoiser), 4",
        "denoiser, 64": "denoiser, 4",
        "arange(64)": "arange(4)",
        "data.test, 100": "data.test, 2",
        "data.train, 64": "data.train, 4",
    },
    "docs/index.md": {"range(3000)": "range(2)", "1000, (2,)": "4, (2,)"},
    "docs/likelihoods.md": {"held_out(50)": "held_out(4)"},
    "docs/averages.md": {"optax.adam(1e-3), 1600": "optax.adam(1e-3), 32"},
    "docs/api/bound.md": {"num_terms=64": "num_terms=8", "(128,)": "(12,)"},
    "docs/api/denoisers.md": {"(50,)": "(5,)"},
    "docs/api/nn.md": {"iddpm_cifar10(": "iddpm_digits(", "(8, 3, 32, 32)": "(8, 1, 8, 8)"},
    "docs/conditioning.md": {
        "range(3000)": "range(2)",
        "simulate(256)": "simulate(4)",
        "simulate(200)": "simulate(3)",
        "denoiser, 200": "denoiser, 3",
        "guided, 200": "guided, 3",
        "DDIM(50)": "DDIM(2)",
        "DDIM(10)": "DDIM(1)",
    },
    "docs/controllable.md": {
        "(3, 16, 16)": "(3, 4, 4)",
        "arange(16) < 8": "arange(4) < 2",
        "(20": "(2",
    },
    "docs/inverse-problems.md": {"(3, 16, 16)": "(3, 4, 4)", "(20": "(2"},
    "docs/many-samples.md": {"50_000": "40"},
    "docs/flow-matching.md": {"range(5000)": "range(2)", "1000, (2,)": "4, (2,)"},
    "docs/getting-started.md": {
        "range(5000)": "range(2)",
        "(2, 1000)": "(2, 4)",
        "denoiser, 1000": "denoiser, 4",
        "process, 1000": "process, 20",
    },
    "docs/recipes.md": {
        "= eqd.nn.presets.iddpm_digits(key=key)": (
            "= lambda c, x, args, *, key: jnp.concatenate([x, x])"
        ),
        "init(net, partly": "init(new, partly",
        "DDIM(50": "DDIM(2",
        "denoiser), 16": "denoiser), 2",
        "range(400, -1, -10)": "range(400, -1, -200)",
        "repeats=10": "repeats=2",
        "flow = eqd.ProbabilityFlow(rtol=1e-3, atol=1e-3)": (
            "flow = eqd.ProbabilityFlow(diffrax.Euler(), num_steps=2)"
        ),
        "levels=17, key": "levels=17, flow=flow, key",
    },
    "docs/simulators.md": {
        "range(4000)": "range(2)",
        "simulate(512)": "simulate(4)",
        "simulate(500)": "simulate(3)",
        "DDIM(100": "DDIM(2",
        "num_draws=39": "num_draws=3",
        "(4, 2, 128, 2": "(4, 2, 8, 1",
        "1000": "3",
    },
    "docs/training.md": {"steps=1500": "steps=2", "steps=2000": "steps=3"},
}

# Blocks that need what the tests do not have: files, the network, another framework.
SKIPPED = {
    "docs/api/data.md": ["cifar10()"],
    "docs/api/interop.md": ["load_edm("],
    "docs/your-data.md": ["image_folder(", "load_dataset(", "cached("],
    "docs/bring-your-own-network.md": ["from flax import nnx"],
    "docs/coming-from.md": [".pt", "ddpm-cifar10-32", "save_diffusers("],
    "docs/many-samples.md": ["start_processes()"],
    "docs/recipes.md": ["ddpm-cifar10-32", ".pt"],
}

SLOW = frozenset(
    f"docs/{page}.md"
    for page in (
        *("adaptive-solves", "controllable", "flow-matching", "getting-started", "index"),
        *(
            "training",
            "conditioning",
            "extending",
            "inverse-problems",
            "simulators",
            "likelihoods",
            "recipes",
            "evaluate",
            "api/bound",
            "api/likelihood",
            "api/nn",
        ),
    )
) | {"README.md"}


@contextlib.contextmanager
def as_a_reader():
    """A user's session is in float32 and has neither strictness."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES]
)
def test_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smaller, skipped = SMALLER.get(page, {}), SKIPPED.get(page, ())
    changes = {*smaller, *skipped}
    stale = set(changes)
    names = {"__name__": "page"}
    with as_a_reader():
        exec(compile(BEFORE.get(page, ""), f"before {page}", "exec"), names)
        for number, block in enumerate(PAGES[page], 1):
            found = {text for text in changes if text in block}
            stale -= found
            if found & {*skipped}:
                continue
            for large, small in smaller.items():
                block = block.replace(large, small)
            exec(compile(block, f"{page}, block {number}", "exec"), names)
    assert not stale, f"not on the page any more: {stale}"


def test_the_tables_speak_of_pages():
    for table in (BEFORE, SMALLER, SKIPPED, SLOW):
        assert set(table) <= set(PAGES)
