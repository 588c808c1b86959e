"""The shape of the source: which room imports which, how long things are, what must not appear."""

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "advantage"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]

FOUNDATION = {"types", "equations", "networks"}
# What each room (a folder or a file of `src/advantage`) may import, besides itself. `equations` holds the
# schedules, which drivers resolve and training restores; `__init__` the version, and loads all else lazily.
ROOMS = {
    "platform": set(),
    "disk": set(),
    "types": {"platform"},
    "equations": {"types"},
    "networks": {"types", "equations"},
    "memory": FOUNDATION,
    "algorithms": FOUNDATION | {"memory"},
    "envs": {"types", "platform", "disk", "equations"},
    "drivers": {"types", "platform", "equations", "envs"},
    "training": FOUNDATION | {"disk", "envs", "drivers", "__init__"},  # networks: model files name their activations and optimisers
    "normalising": FOUNDATION | {"algorithms", "envs"},  # a `VecNormalize` meets a model's algorithm
    "models": FOUNDATION | {"platform", "memory", "algorithms", "envs", "drivers", "training", "normalising", "__init__"},
    "experiments": {"types", "equations", "algorithms", "envs", "drivers", "training", "models", "__init__"},  # algorithms: of what parts one is made
    "llm": {"types", "platform", "disk", "equations", "networks", "training"},
    "cli": {"types", "envs", "training", "models", "experiments", "llm", "__init__"},
}

# What is read to follow one algorithm from the environment's step to the changed parameters.
PATHS = {
    "ppo": (
        "drivers/host.py",
        "algorithms/ppo.py",
        "equations/returns.py",
        "equations/objectives.py",
        "equations/distributions.py",
        "networks/actor_critic.py",
    ),
    "dqn": (
        "drivers/host.py",
        "algorithms/dqn.py",
        "memory/replayed.py",
        "memory/uniform.py",
        "equations/objectives.py",
        "networks/q_network.py",
    ),
}


@functools.cache
def tree(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room(path: Path) -> str:
    """The folder or file directly under `src/advantage` that a source file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """`(line, dotted name)` of everything a file imports, wherever in the file and however it is written.

    `from a import b` gives `a.b`: `from advantage import drivers` is an import of the drivers.
    """
    package = ("advantage", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """`(line, room)` of everything a file imports from this library."""
    for line, module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "advantage":
            known = len(parts) > 1 and (parts[1] in ROOMS or (SOURCE / parts[1]).is_dir())
            # A public name such as `advantage.PPO` comes through the package's own door.
            yield line, parts[1] if known else "__init__"


def docstrings(module: ast.Module) -> dict[ast.AST, ast.Expr]:
    """The docstring expression of every documented module, class and function."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = (node for node in ast.walk(module) if isinstance(node, kinds))
    return {node: node.body[0] for node in documented if ast.get_docstring(node, clean=False) is not None}


def test_there_is_source():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_module_can_be_imported(name):
    """With types checked and warnings as errors; where its extra is missing, it says what to install."""
    parts = ("advantage", *Path(name).with_suffix("").parts)
    try:
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
    except ImportError as error:
        assert "pip install" in str(error)


def test_types_are_checked():
    """The import hook of `conftest.py` works: `[3]` is not `[4]`, an integer array no float array."""
    from advantage.equations.objectives import squared_error

    squared_error(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(jaxtyping.TypeCheckError):
        squared_error(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(jaxtyping.TypeCheckError):
        squared_error(jnp.zeros(3), jnp.zeros(3, int))


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name):
    path = SOURCE / name
    if room(path) == "__init__":
        return  # the public names come from every room, lazily; see test_light_imports
    assert room(path) in ROOMS, f"{name}: say in ROOMS what the new room {room(path)!r} may import"
    allowed = ROOMS[room(path)] | {room(path)}
    wrong = [f"line {line}: {target}" for line, target in imported_rooms(path) if target not in allowed]
    assert not wrong, f"{name} may import {sorted(allowed)} only, but imports {wrong}"


def test_the_rooms_form_no_circle():
    """ROOMS itself is in order: removing rooms that import only removed ones ends with none left."""
    left = {name: set(targets) - {"__init__"} for name, targets in ROOMS.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_drivers_name_no_algorithm():
    """A driver runs any algorithm: neither its names nor its strings know one (its prose may)."""
    algorithms = {path.stem for path in SOURCE.glob("algorithms/*.py")} - {"__init__"} | {"ppo", "dqn"}
    pattern = re.compile(rf"(?<![a-z])({'|'.join(sorted(algorithms))})(?![a-z])", re.IGNORECASE)
    wrong = []
    for path in SOURCE.glob("drivers/**/*.py"):
        prose = {id(expression.value) for expression in docstrings(tree(path)).values()}
        for node in ast.walk(tree(path)):
            words = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
            if id(node) not in prose and any(pattern.search(word) for word in words):
                wrong.append(f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', '?')}: {words}")
    assert not wrong


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("algorithms/")])
def test_algorithms_are_one_short_file_without_inheritance(name):
    path = SOURCE / name
    assert path.parent == SOURCE / "algorithms", "one file is one algorithm: no folders"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{name} has {lines} lines"
    classes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base) for node in classes for base in node.bases}
    assert bases <= {"eqx.Module", "NamedTuple", "Protocol"}


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_short(name):
    """At most 50 lines, from `def` to the last line, without the docstring."""
    module = tree(SOURCE / name)
    documentation = docstrings(module)
    wrong = []
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if node in documentation:
                lines -= documentation[node].end_lineno - documentation[node].lineno + 1
            if lines > 50:
                wrong.append(f"{node.name}: {lines} lines")
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_read_can_run_nothing(name):
    """No pickle in any disguise, no code from strings: a stranger's model file is data."""
    path = SOURCE / name
    picklers = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    wrong = [module for _, module in imported_modules(path) if module.split(".")[0] in picklers]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                wrong.append("allow_pickle")
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if function in {"eval", "exec"} or re.fullmatch(r"yaml\.(unsafe_|full_)?load(_all)?", function):
                wrong.append(function)
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_unfinished(name):
    unfinished = re.compile(r"\b(NotImplementedError|TODO|FIXME|XXX)\b")
    lines = (SOURCE / name).read_text(encoding="utf-8").splitlines()
    assert not [f"{number}: {line}" for number, line in enumerate(lines, 1) if unfinished.search(line)]


def test_every_room_has_something_in_it():
    """No empty folders and none with only an `__init__.py`."""
    folders = [path for path in SOURCE.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    empty = []
    for folder in folders:
        names = {path.name for path in folder.iterdir()} - {"__pycache__"}
        # Git leaves the compiled files of a removed folder behind: nothing else in it is no room.
        if names and not names - {"__init__.py"}:
            empty.append(str(folder.relative_to(SOURCE)))
    assert not empty


def test_no_path_of_one_machine():
    """Nothing outside the tests points into somebody's home or workplace."""
    homes = "|".join(("home", "Users", "root", "work", "mnt", "tmp"))
    somewhere = re.compile(rf"(?<![\w.:/])(/({homes})/|[A-Z]:\\)")
    folders = ("src", "examples", "benchmarks", "docs", ".ci")
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".json", ".csv", ""}
    candidates = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    candidates += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.yml"), ROOT / "Makefile"]
    wrong = []
    for path in candidates:
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
            lines = path.read_text(encoding="utf-8").splitlines()
            name = path.relative_to(ROOT)
            wrong += [f"{name}:{number}" for number, line in enumerate(lines, 1) if somewhere.search(line)]
    assert not wrong


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assignments = [node for node in tree(SOURCE / "__init__.py").body if isinstance(node, ast.Assign)]
    values = {ast.unparse(node.targets[0]): node.value for node in assignments}
    assert ast.literal_eval(values["__version__"]) == project["version"]


LIGHT = {
    "import": "import advantage",
    "dir": "import advantage; assert 'PPO' in dir(advantage)",
    "help": "import advantage.cli; advantage.cli.main()",
}


@pytest.mark.parametrize("what", LIGHT)
def test_light_imports(what):
    """`import advantage` and `advantage --help` answer at once: without JAX, Gymnasium or Matplotlib."""
    code = f"""
import sys
sys.argv = ["advantage", "--help"]
try:
    {LIGHT[what]}
except SystemExit as exit:
    assert not exit.code, exit.code
heavy = {{"jax", "jaxlib", "equinox", "optax", "gymnasium", "scipy", "matplotlib"}} & sys.modules.keys()
assert not heavy, f"imported {{heavy}}"
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 0, done.stderr
    assert what != "help" or "advantage" in done.stdout


@pytest.mark.parametrize("algorithm", PATHS)
def test_an_algorithm_is_quick_to_follow(algorithm):
    """From the environment's step to the changed parameters: at most 6 files and 1,200 lines."""
    assert len(PATHS[algorithm]) <= 6
    lines = {name: len((SOURCE / name).read_text(encoding="utf-8").splitlines()) for name in PATHS[algorithm]}
    assert sum(lines.values()) <= 1200, lines
