"""Imports point downwards only: a room imports from those above its line, not back."""

import ast
from pathlib import Path

import pytest

import ncp_jax

PACKAGE = Path(ncp_jax.__file__).parent

FLOORS = [  # the ground first; rooms of one floor do not know each other
    {"errors", "nested"},
    {"rng", "process", "records"},
    {"parallel", "data", "pages.parts"},
    {"models", "pages"},
    {"models.nvae", "models.rae", "samplers"},
    {"priors"},
    {"training"},
    {"training.ncp"},
    {"priors.ex_post", "priors.pixel_energy"},
    {"priors.joint", "priors.conditional"},
    {"evaluation"},
    {"evaluation.metrics", "benchmark"},
    {"comparison", "experiment.setup", "benchmark.chains"},
    {"experiment.vaebm", "experiment.pretrained"},
    {"experiment"},
    {"experiment.from_python"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
BAD_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}
MODULES.pop("__init__")  # the package's own offer, which knows every room


def room(module):
    """The innermost room that a module lies in; a file at the top is its own."""
    while module not in FLOOR and "." in module:
        module = module.rpartition(".")[0]
    return module


def imports(path):
    """Every module that a file imports, wherever in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}".removeprefix("ncp_jax.")
                yield f"ncp_jax.{inside}" if inside in MODULES else node.module


def inner(name):
    """What a module imports from this package."""
    found = {i for i in imports(MODULES[name]) if i.startswith("ncp_jax.")}
    return {i.removeprefix("ncp_jax.") for i in found}


def outer(name):
    """The outside packages that a module needs, itself or through others."""
    todo, seen, packages = [name], set(), set()
    while todo:
        module = todo.pop()
        seen.add(module)
        packages |= {i.split(".")[0] for i in imports(MODULES[module])}
        todo += inner(module) - seen
    return packages


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name):
    for imported in inner(name):
        there, here = room(imported), room(name)
        assert there == here or FLOOR[there] < FLOOR[here], f"{name}: {imported}"


def test_no_circle_of_modules():
    open_modules, done = [], set()

    def visit(name):
        assert name not in open_modules, f"circle: {open_modules} {name}"
        if name not in done:
            open_modules.append(name)
            for imported in sorted(inner(name)):
                visit(imported)
            done.add(open_modules.pop())

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_a_room_says_what_it_knows_and_has_a_door(name):
    path = MODULES[name]
    assert len(ast.get_docstring(ast.parse(path.read_text()))) > 20
    if path.name == "__init__.py":
        assert len(list(path.parent.glob("*.py"))) <= 16  # fifteen and the door


def test_the_hall_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 7  # six besides __init__


def test_settings_stay_in_the_experiment():
    with_dicts = {
        name
        for name, path in MODULES.items()
        if any(i.split(".")[0] == "ml_collections" for i in imports(path))
    }
    assert {room(name).split(".")[0] for name in with_dicts} == {"experiment"}


@pytest.mark.parametrize(
    "name", [name for name in MODULES if room(name).split(".")[0] == "pages"]
)
def test_a_report_needs_no_jax(name):
    assert not outer(name) & JAX


def test_the_search_for_packages_follows_imports():
    assert {"jax", "flax", "optax"} <= outer("experiment.stages")
    assert "jax" in outer("experiment.setup.workdir")  # through importance


def test_no_module_is_a_drawer():
    assert not {name.split(".")[-1] for name in MODULES} & BAD_NAMES


def test_samplers_know_no_model():
    within = {name for name in MODULES if room(name) == "samplers"}
    assert len(within) == 5
    seen = {i for name in within for i in inner(name)} - within
    assert seen == {"rng", "models.distributions"}
