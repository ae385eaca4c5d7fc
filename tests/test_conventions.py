"""The house rules, and that each of them can fail."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest
from conventions import (
    check_abstract_or_final,
    check_documented,
    check_exports,
    check_floors,
    check_lines,
    check_module_names,
    check_names,
    check_sizes,
    check_third_parties,
    code_blocks,
    exports,
    imports,
    public_modules,
    read_package,
)

import eqdiff


ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = read_package(ROOT)


def _api_pages():
    """The API pages, every name that the hook fills in written out."""
    path = ROOT / "docs" / "hooks" / "api_pages.py"
    spec = importlib.util.spec_from_file_location("api_pages", path)
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    return {page.name: hook.expand(page.read_text(), ROOT) for page in pages}


PAGES = _api_pages()

EXTRAS = "grain PIL tensorstore sklearn tqdm safetensors matplotlib tyro tensorboardX wandb torch"


def _texts():
    """What readers and users of the library read."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for folder in ("eqdiff", "examples", "benchmarks"):
        paths += (ROOT / folder).rglob("*.py")
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


def _files():
    folders = ("eqdiff", "examples", "tests", "benchmarks", "docs/hooks")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def test_floors():
    assert check_floors(PACKAGE) == []


def test_third_parties():
    assert check_third_parties(PACKAGE) == []


def test_abstract_or_final():
    assert check_abstract_or_final(PACKAGE) == []


def test_exports():
    assert len(public_modules(PACKAGE)) > 1
    assert check_exports(PACKAGE) == []


def test_module_names():
    assert check_module_names(PACKAGE) == []


def test_documented():
    assert check_documented(PACKAGE, PAGES) == []


def unreached(package: dict[str, str], guides: dict[str, str]) -> list[str]:
    """The public names that no guide names in its code or between backticks."""
    code = re.findall(r"```.*?```|`[^`]+`", "\n".join(guides.values()), re.DOTALL)
    named = set(re.findall(r"\w+", " ".join(code)))
    return [
        f"{module}.{name}"
        for module in public_modules(package)
        for name in exports(package, module)
        if name not in named and f"{module}.{name}" not in public_modules(package)
    ]


def test_guides_reach_every_name():
    guides = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    gallery = {
        path.name: f"```\n{path.read_text()}```"
        for path in (ROOT / "docs/gallery").glob("[!_]*.py")
    }
    assert len(guides) > 20 and len(gallery) > 5
    assert unreached(PACKAGE, guides | gallery) == []


def test_guides_reach_every_name_can_fail():
    package = {"eqdiff": "from ._x import a as a\nfrom ._x import b as b", "eqdiff._x": ""}
    assert unreached(package, {"page.md": "of a, and `b`"}) == ["eqdiff.a"]
    assert unreached(package, {"page.md": "```python\nb(eqdiff.a)\n```"}) == []


def test_sizes():
    assert check_sizes(_files()) == []


def test_lines():
    blocks = {
        f"{name}, block {i}": block
        for name, text in _texts().items()
        if name.endswith(".md")
        for i, block in enumerate(code_blocks(text), 1)
    }
    assert len(blocks) > 20
    assert check_lines(_files() | blocks) == []


def test_names():
    assert check_names(eqdiff, _texts()) == []


def test_einops_is_needed():
    """A core dependency that no file imports would be a mistake."""
    names = [name for module in PACKAGE for name, _, _ in imports(PACKAGE, module)]
    assert "einops" in names


# Every rule can fail.


def _package(**sources):
    """`_package(nn__conv="…")` has the modules eqdiff, eqdiff.nn and eqdiff.nn.conv."""
    package = {"eqdiff": ""}
    for name, source in sources.items():
        parts = [part.replace("P_", "_") for part in name.split("__")]
        for end in range(1, len(parts)):
            package.setdefault(".".join(["eqdiff", *parts[:end]]), "")
        package[".".join(["eqdiff", *parts])] = source
    return package


def test_imports_are_resolved():
    package = _package(
        nn__conv="from .._gaussian import x\nfrom . import block\nfrom .block import y\n"
    )
    package["eqdiff.nn"] = "from .conv import z\nfrom .. import _types\nimport jax.numpy as jnp\n"
    names = [name for name, _, _ in imports(package, "eqdiff.nn.conv")]
    assert names == ["eqdiff._gaussian", "eqdiff.nn", "eqdiff.nn.block"]
    names = [name for name, _, _ in imports(package, "eqdiff.nn")]
    assert names == ["eqdiff.nn.conv", "eqdiff._types", "jax.numpy"]


@pytest.mark.parametrize(
    "sources",
    [
        {"P_gaussian": "from ._process import VPSDE"},
        {"P_types": "from ._gaussian import gaussian_kl"},
        {"nn__unet": "from .._process import VPSDE"},
        {"P_process__vp": "from .._variance import FixedSmall"},
        {"P_check": "from ._require import require"},
        {"terms": "from ._sampler import DDIM"},
        {"P_term": "def f():\n    from ._sampler import DDIM"},
        {"P_denoiser": "from ._predict import predict"},
        {"train__step": "from ..data import digits"},
        {"interop__openai": "from .. import metrics"},
        {"P_bound": "import eqdiff as eqd"},
        {"P_attic": "x = 1"},
    ],
)
def test_floors_can_fail(sources):
    assert len(check_floors(_package(**sources))) == 1


@pytest.mark.parametrize(
    "sources",
    [
        {"P_predict": "from ._denoiser import Denoiser"},
        {"P_process__schedule": "from .._check import whole\nfrom ._table import Table"},
        {"train__step": "from .._loss import l_hybrid\nfrom .._map import generate"},
        {"P_gaussian": "from ._types import Example"},
    ],
)
def test_floors_can_pass(sources):
    assert check_floors(_package(**sources)) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"P_process__vp": "import diffrax"},
        {"P_loss__simple": "from diffrax import ODETerm"},
        {"P_map": "import optax"},
        {"P_map": "import tqdm"},
        {"P_map": "def f():\n    require('optax', '…', extra='train')"},
        {"train__loader": "import grain"},
        {"metrics__fid": "import torch"},
        {"P_serialise": "import safetensors.numpy"},
        {"train__plot": "def f():\n    import seaborn"},
        {"P_gaussian": "from __future__ import annotations"},
    ],
)
def test_third_parties_can_fail(sources):
    assert len(check_third_parties(_package(**sources))) == 1


@pytest.mark.parametrize(
    "sources",
    [
        {"P_term": "import diffrax\nimport math\nimport jax.numpy as jnp"},
        {"interop__files": "def f():\n    import torch"},
        {"P_chunks": "def f():\n    require('tqdm', '…', extra='data')"},
        {"P_serialise": "def f():\n    from safetensors.numpy import save_file"},
        {"train__step": "import optax"},
    ],
)
def test_third_parties_can_pass(sources):
    assert check_third_parties(_package(**sources)) == []


_BASE = """
class AbstractA(eqx.Module):
    x: eqx.AbstractVar[int]

    @abc.abstractmethod
    def f(self): ...

    def g(self): ...

class B(AbstractA):
    x: int
    def f(self): ...
"""


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("class C(B):\n    pass", "C subclasses B, which is concrete"),
        ("class C(AbstractA):\n    def g(self): ...", "C.g overrides the concrete AbstractA.g"),
        (
            "class AbstractD(AbstractA):\n    def f(self): ...\n"
            "class C(AbstractD):\n    def f(self): ...",
            "C.f overrides the concrete AbstractD.f",
        ),
        (
            "class C(eqx.Module):\n    @abc.abstractmethod\n    def f(self): ...",
            "so call it AbstractC",
        ),
        ("class AbstractC(eqx.Module):\n    y: int", "AbstractC.y: an abstract class has a field"),
        ("class AbstractC(abc.ABC):\n    y: int = 1", "AbstractC.y: an abstract class has a field"),
        ("class AbstractC:\n    def __init__(self): ...", "an abstract class has a constructor"),
        ("a = AbstractA()", "instantiates AbstractA"),
    ],
)
def test_abstract_or_final_can_fail(source, complaint):
    assert check_abstract_or_final(_package(P_gaussian=_BASE)) == []
    (found,) = check_abstract_or_final(_package(P_gaussian=_BASE + source))
    assert complaint in found


def test_declarations_are_no_fields():
    source = "class AbstractC(abc.ABC):\n    y: int"
    assert check_abstract_or_final(_package(P_gaussian=_BASE + source)) == []


def test_exports_can_fail():
    good, bad = "from ._gaussian import a as a", "from ._gaussian import a"
    assert check_exports({"eqdiff": good, "eqdiff._gaussian": ""}) == []
    assert len(check_exports({"eqdiff": bad, "eqdiff._gaussian": ""})) == 1


def test_module_names_can_fail():
    clash, fine = "from .a import a as a", "from .a import A as A"
    assert len(check_module_names({"eqdiff": "", "eqdiff._x": clash, "eqdiff._x.a": ""})) == 1
    assert check_module_names({"eqdiff": "", "eqdiff._x": fine, "eqdiff._x.a": ""}) == []


@pytest.mark.parametrize(
    "source, page, complaints",
    [
        ('def a():\n    "A."', "::: eqdiff.a", 0),
        ('a = 1\n"A."', "::: eqdiff.a", 0),
        ("def a(): ...", "::: eqdiff.a", 1),
        ("a = 1\nb = 2", "::: eqdiff.a", 1),
        ('class a:\n    "A."', "see `eqdiff.a`", 1),
        ("b = 1", "::: eqdiff.a", 1),
        ("def a(): ...", "", 2),
    ],
)
def test_documented_can_fail(source, page, complaints):
    package = {"eqdiff": "from ._x import a as a", "eqdiff._x": "from .y import a"}
    package["eqdiff._x.y"] = source
    assert len(check_documented(package, {"page.md": page})) == complaints


def test_sizes_can_fail():
    assert check_sizes({"a": "x = 1\n" * 400}) == []
    assert len(check_sizes({"a": "x = 1\n" * 401})) == 1
    docstring = '    """' + "\n" * 100 + '    """\n'
    assert check_sizes({"a": "def f():\n" + docstring + "    x = 1\n" * 60}) == []
    assert len(check_sizes({"a": "def f():\n" + docstring + "    x = 1\n" * 61})) == 1


def test_lines_can_fail():
    assert check_lines({"a": "é" * 100 + "\n"}) == []
    assert len(check_lines({"a": "x = 1\n" + "x" * 101})) == 1


def test_code_blocks():
    page = (
        'a\n```python\nx = 1\n```\n```bash\nls\n```\n=== "b"\n\n    ```python\n    y = 2\n    ```\n'
    )
    assert code_blocks(page) == ["x = 1\n", "y = 2\n"]
    assert code_blocks(page, "bash") == ["ls\n"]


@pytest.mark.parametrize(
    "text, complaints",
    [
        ("eqd.DDIM(50).num_calls and [`eqdiff.Estimate.move`][]", 0),
        ("eqdiff.Denoiser.c_noise is a field, eqdiff.nn.UNet a class of a namespace", 0),
        ("eqdiff.terms.reverse_sde, eqdiff._process.base, python -m eqdiff.interop", 0),
        ('the file tests/eqdiff.rst, my_eqd.Nothing, and the old name "eqdiff.Noise"', 0),
        ("eqd.Ancestor(4)", 1),
        ("eqdiff.Denoiser.label", 1),
        ("eqdiff.nn.NoNet and eqdiff._process.chain", 2),
    ],
)
def test_names_can_fail(text, complaints):
    assert len(check_names(eqdiff, {"text": text})) == complaints


# What an installation without any extra can do.

_WITHOUT_EXTRAS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}.split():
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
{code}
"""


def _run_without_extras(code):
    source = _WITHOUT_EXTRAS.format(blocked=EXTRAS, code=code)
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_core_only():
    done = _run_without_extras("import eqdiff; eqdiff.VPSDE(); eqdiff.nn")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", EXTRAS.split()[:3])
def test_core_only_can_fail(extra):
    done = _run_without_extras(f"import {extra}")
    assert done.returncode != 0 and "blocked" in done.stderr
