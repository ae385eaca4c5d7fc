"""The checkers behind `test_conventions.py`: the house rules that a machine can check.

All but `check_names` only parse. A *package* is a dictionary from dotted module names to sources,
so that the checkers run on the real one and on made-up ones alike; a checker returns a list of
complaints.
"""

import ast
import contextlib
import importlib
import pathlib
import re
import sys
import textwrap
from types import ModuleType
from typing import Any


NAME = "eqdiff"

# A room imports lower floors and the rooms listed before it on its own floor.
FLOORS = (
    (*"_types _check _deferred _linear_map _padding _platform _require _gaussian _shown".split(),),
    ("_process", "nn", "_atomic", "_download", "_together", "_torch_file"),
    ("_parameterisation", "_variance", "_timesteps", "_measurement", "operators"),
    ("_denoiser", "_analytic", "_predict", "_trace", "_guidance", "_term"),
    ("_loss", "_sampler", "_likelihood", "_bound"),
    ("_store", "_failures", "_writer", "_chunks", "_share", "_map", "_serialise", "terms"),
    ("train", "data", "metrics", "interop"),
)
# Rooms that may import less than their place allows.
NARROWER = {
    **dict.fromkeys(("_process", "nn", "operators"), frozenset(FLOORS[0])),
    "terms": frozenset(("_term",)),
}
NAMESPACES = (
    *("nn", "nn.styles", "nn.embeddings", "nn.presets"),
    *("operators", "terms", "train", "data", "metrics", "interop"),
)
STRANGERS = frozenset(("train", "data", "metrics", "interop"))

EVERYWHERE = frozenset(("jax", "jaxlib", "numpy", "equinox", "jaxtyping", "einops"))
# Third party -> rooms that may import it at the top of a file, rooms that may import it inside a
# function.
THIRD_PARTIES = {
    "diffrax": (frozenset("_term _sampler _likelihood metrics train".split()), frozenset()),
    "optax": (frozenset(("train",)), frozenset()),
    "tensorstore": (frozenset(), frozenset(("train",))),
    "tensorboardX": (frozenset(), frozenset(("train",))),
    "wandb": (frozenset(), frozenset(("train",))),
    "matplotlib": (frozenset(), frozenset(("train",))),
    "grain": (frozenset(), frozenset(("data",))),
    "PIL": (frozenset(), frozenset(("data", "metrics"))),
    "sklearn": (frozenset(), frozenset(("data", "metrics"))),
    "scipy": (frozenset(), frozenset(("train",))),
    "tyro": (frozenset(), frozenset(("train",))),
    "tqdm": (frozenset(), frozenset(("_download", "data", "train", "_chunks"))),
    "safetensors": (frozenset(), frozenset(("_serialise", "interop"))),
    "msgpack": (frozenset(), frozenset(("interop",))),
    "torch": (frozenset(), frozenset(("interop",))),
}

FILE_LINES = 400
FUNCTION_LINES = 60
LINE_LENGTH = 100


def read_package(root: pathlib.Path) -> dict[str, str]:
    """Every module of the package below `root`: `eqdiff.nn` stands for `eqdiff/nn/__init__.py`."""
    package = {}
    for path in sorted((root / NAME).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        package[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return package


def is_init(package: dict[str, str], module: str) -> bool:
    return any(other.startswith(module + ".") for other in package) or module == NAME


def target(package: dict[str, str], module: str, node: ast.ImportFrom) -> str:
    """The absolute dotted name after `from`."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    up = node.level - 1 if is_init(package, module) else node.level
    base = parts[: len(parts) - up]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(package: dict[str, str], module: str) -> list[tuple[str, bool, int]]:
    """(absolute dotted name, whether inside a function, line) of everything a module imports."""
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, inside, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                name = target(package, module, child)
                # `from .. import _gaussian` names a room after `import`.
                names = [f"{name}.{a.name}" for a in child.names] if name == NAME else [name]
                found.extend((name, inside, child.lineno) for name in names)
            elif isinstance(child, ast.Call) and _name(child.func) == "require" and child.args:
                # `_require.require("tqdm", …)` imports what it names.
                if isinstance(child.args[0], ast.Constant):
                    found.append((str(child.args[0].value), inside, child.lineno))
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            visit(child, inside or function)

    visit(ast.parse(package[module]), False)
    return found


def allowed_rooms(room: str) -> frozenset[str]:
    if room in NARROWER:
        return NARROWER[room]
    allowed: set[str] = set()
    for floor in FLOORS:
        for other in floor:
            if other == room:
                return frozenset(allowed - (STRANGERS if room in STRANGERS else set()))
            allowed.add(other)
    raise KeyError(room)


def check_floors(package: dict[str, str]) -> list[str]:
    """A room imports only rooms below it; the façade is imported by nobody."""
    complaints = []
    known = {room for floor in FLOORS for room in floor}
    for module in package:
        parts = module.split(".")
        if len(parts) == 1:
            continue
        room = parts[1]
        if room not in known:
            complaints.append(f"{module}: a room without a floor; give it one in FLOORS")
            continue
        for name, _, line in imports(package, module):
            other = name.split(".")
            if other[0] != NAME:
                continue
            if len(other) == 1:
                complaints.append(f"{module}:{line} imports the façade; import the room instead")
            elif other[1] != room and other[1] not in allowed_rooms(room):
                complaints.append(f"{module}:{line} imports {name}, which is not below {room}")
    return complaints


def check_third_parties(package: dict[str, str]) -> list[str]:
    """Third parties where the design puts them, extras where `import eqdiff` does not need them."""
    complaints = []
    for module in package:
        room = [*module.split("."), ""][1]
        for name, inside, line in imports(package, module):
            top = name.split(".")[0]
            if top == NAME or top in EVERYWHERE or top in sys.stdlib_module_names:
                if name == "__future__":
                    complaints.append(f"{module}:{line} postpones annotations, which hides shapes")
                continue
            anywhere, in_function = THIRD_PARTIES.get(top, (frozenset(), frozenset()))
            if room not in anywhere and not (inside and room in in_function):
                where = "inside a function" if inside else "at the top of a file"
                complaints.append(
                    f"{module}:{line} imports {top} {where} of {room or 'the façade'}"
                )
    return complaints


def _name(node: ast.expr) -> str:
    """The last name of `a.b.Name[T]`."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_abstract_name(name: str) -> bool:
    return name.lstrip("_").startswith("Abstract")


def _methods(node: ast.ClassDef) -> dict[str, bool]:
    """Method -> whether it is abstract."""
    return {
        item.name: any(_name(d).startswith("abstract") for d in item.decorator_list)
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    }


def _fields(node: ast.ClassDef, is_module: bool) -> list[str]:
    """Annotated fields that are not mere declarations; outside Equinox a bare annotation is one."""
    declarations = ("AbstractVar", "AbstractClassVar", "ClassVar")
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and _name(item.annotation) not in declarations
        and (is_module or item.value is not None)
    ]


# Equinox calls the `__check_init__` of every class in the hierarchy, so it is no override.
_COOPERATIVE = frozenset(("__check_init__", "__init_subclass__"))


def _ancestors(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    bases = [_name(base) for base in classes[name].bases]
    own = [base for base in bases if base in classes and base != name]
    return [*own, *(far for base in own for far in _ancestors(base, classes))]


def check_abstract_or_final(package: dict[str, str]) -> list[str]:
    """A class is abstract (methods and declarations) or final (never subclassed or overridden)."""
    complaints = []
    trees = {module: ast.parse(source) for module, source in package.items()}
    found = [n for t in trees.values() for n in ast.walk(t) if isinstance(n, ast.ClassDef)]
    classes = {node.name: node for node in found}
    for name, node in classes.items():
        methods = _methods(node)
        lineage = [name, *_ancestors(name, classes)]
        is_module = any(_name(base) == "Module" for c in lineage for base in classes[c].bases)
        if _is_abstract_name(name):
            fields = _fields(node, is_module)
            complaints += [f"{name}.{f}: an abstract class has a field" for f in fields]
            if "__init__" in methods:
                complaints.append(f"{name}.__init__: an abstract class has a constructor")
        elif any(methods.values()):
            complaints.append(f"{name}: has abstract methods, so call it Abstract{name}")
        ancestors = lineage[1:]
        complaints += [
            f"{name} subclasses {a}, which is concrete"
            for a in ancestors
            if not _is_abstract_name(a)
        ]
        complaints += [
            f"{name}.{method} overrides the concrete {ancestor}.{method}"
            for ancestor in dict.fromkeys(ancestors)
            for method, abstract in _methods(classes[ancestor]).items()
            if not abstract and method in methods and method not in _COOPERATIVE
        ]
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in classes:
                if _is_abstract_name(_name(node.func)):
                    complaints.append(f"{module}:{node.lineno} instantiates {_name(node.func)}")
    return complaints


def exports(package: dict[str, str], module: str) -> dict[str, str]:
    """Public name -> the module that a package's `__init__` takes it from."""
    return {
        alias.asname or alias.name: target(package, module, node)
        for node in ast.parse(package[module]).body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_")
    }


def definition(package: dict[str, str], module: str, name: str) -> tuple[str, str | None] | None:
    """Where a name is defined, followed through re-exports, and its docstring."""
    if f"{module}.{name}" in package:
        return f"{module}.{name}", ast.get_docstring(ast.parse(package[f"{module}.{name}"]))
    if module not in package:
        return None
    body = ast.parse(package[module]).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, ast.get_docstring(node)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if any(_name(t) == name for t in targets):
            text = after.value if isinstance(after, ast.Expr) else None
            value = text.value if isinstance(text, ast.Constant) else None
            return module, value if isinstance(value, str) else None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(package, target(package, module, node), alias.name)
    return None


def public_modules(package: dict[str, str]) -> list[str]:
    return [NAME, *(f"{NAME}.{n}" for n in NAMESPACES if f"{NAME}.{n}" in package)]


def check_exports(package: dict[str, str]) -> list[str]:
    """`from ._x import X as X` in every `__init__`: type checkers take that for public."""
    return [
        f"{module}:{node.lineno} write `{alias.name} as {alias.name}`"
        for module, source in package.items()
        if is_init(package, module)
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.asname != alias.name
    ]


def check_module_names(package: dict[str, str]) -> list[str]:
    """No `from .clip import clip`: to the documentation that name would mean the module."""
    return [
        f"{module}: {name} is taken from a module of the same name; rename the module"
        for module in package
        if is_init(package, module)
        for name, source in exports(package, module).items()
        if source == f"{module}.{name}"
    ]


def check_documented(package: dict[str, str], pages: dict[str, str]) -> list[str]:
    """Every public name has a docstring and stands on an API page as `::: eqdiff.Name`."""
    complaints = []
    text = "\n".join(pages.values())
    documented = set(re.findall(r"^ *::: +([\w.]+)", text, flags=re.MULTILINE))
    for module in public_modules(package):
        for name, source in exports(package, module).items():
            if f"{module}.{name}" in public_modules(package):
                continue
            where = definition(package, source, name)
            if where is None:
                complaints.append(f"{module}.{name}: not found in {source}")
            elif not where[1]:
                complaints.append(f"{module}.{name}: no docstring in {where[0]}")
            if f"{module}.{name}" not in documented:
                complaints.append(f"{module}.{name}: on no page of docs/api")
    return complaints


def check_sizes(files: dict[str, str]) -> list[str]:
    """A file has at most 400 lines, a function's body at most 60 (its docstring not counted)."""
    complaints = []
    for name, source in files.items():
        lines = len(source.splitlines())
        if lines > FILE_LINES:
            complaints.append(f"{name}: {lines} lines, at most {FILE_LINES}")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                lines -= (text.end_lineno or text.lineno) - text.lineno + 1
            if lines > FUNCTION_LINES:
                complaints.append(f"{name}: {node.name}: {lines} lines, at most {FUNCTION_LINES}")
    return complaints


def check_lines(files: dict[str, str]) -> list[str]:
    """A line has at most 100 characters, docstrings and comments included."""
    return [
        f"{name}:{number}: {len(line)} characters, at most {LINE_LENGTH}"
        for name, source in files.items()
        for number, line in enumerate(source.splitlines(), 1)
        if len(line) > LINE_LENGTH
    ]


def code_blocks(page: str, language: str = "python") -> list[str]:
    """The fenced blocks of a Markdown page in one language, without their indentation."""
    pattern = rf"^( *)```{language}\n(.*?)^\1```"
    return [
        textwrap.dedent(match.group(2))
        for match in re.finditer(pattern, page, flags=re.DOTALL | re.MULTILINE)
    ]


def check_names(package: ModuleType, files: dict[str, str]) -> list[str]:
    """Every `eqd.X` and `eqdiff.X` in a text exists, and so do the methods and fields after it.

    A name alone between quotation marks is data: what a class was called in an old file.
    """
    complaints = []
    for name, text in files.items():
        for match in re.finditer(r"(?<![\w./\"-])(?:eqd|eqdiff)((?:\.[A-Za-z_]\w*)+)", text):
            if not _exists(package, match.group(1).split(".")[1:]):
                line = text.count("\n", 0, match.start()) + 1
                complaints.append(f"{name}:{line}: there is no {match.group()}")
    return complaints


def _exists(thing: Any, path: list[str]) -> bool:
    for part in path:
        if isinstance(thing, ModuleType):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(f"{thing.__name__}.{part}")
        elif not isinstance(thing, type):
            # The result of a call, or a function's attribute: nobody's business.
            return True
        elif part in {
            field for base in thing.__mro__ for field in vars(base).get("__annotations__", {})
        }:
            return True
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True
