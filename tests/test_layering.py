"""Imports point downwards only; see `LAYERS`."""

import ast
from pathlib import Path

import pytest

import ncp_jax

PACKAGE = Path(ncp_jax.__file__).parent

# A module imports only from layers above its own line.  A new module gets a line here.
LAYERS = [
    {"errors", "rng", "distributions", "importance", "optimizers", "pictures"}
    | {"kl_schedule", "pixels", "models.convolution", "models.nvae_regularizers"}
    | {"metrics.inception_blocks", "benchmark.arithmetic", "benchmark.timing"}
    | {"calibration", "nested"},
    {"samplers.chains", "models.base", "models.discriminator", "metrics.modes"}
    | {"metrics.moments", "metrics.gaussian_kernel", "metrics.neighbours"}
    | {"cifar", "partial_array", "picture_files", "splits", "quantities"}
    | {"page", "published"}
    | {"parallel", "torch_file", "models.nvae_layers", "metrics.extractor"},
    {"models.mlp_vae", "latents", "readers", "checkpoints", "run_log", "plots"}
    | {"metrics.frechet", "metrics.two_sample", "metrics.weights"}
    | {"metrics.memorisation", "summary"}
    | {"celeba", "picture_cache", "picture_folder", "stacks", "samplers.resampling"}
    | {"models.flows", "models.nvae_cells", "models.residual_discriminator"},
    {"data_files", "models.nvae_layout", "models.nvae_group", "models.nvae_towers"}
    | {"group_plots", "distance_plots", "tables", "metrics.latent_mmd"}
    | {"metrics.inception", "metrics.feature_nets", "samplers.dynamics"},
    {"samplers", "training", "prior", "data", "models.nvae_topdown", "galleries"}
    | {"benchmark.in_torch", "metrics.feature_scores"},
    {"vae_stage", "nce", "report", "config", "models.nvae", "group_samplers"}
    | {"benchmark_page", "benchmark.plain"}
    | {"generation", "benchmark.training_loop"},
    {"benchmark.sampling", "benchmark.alone", "benchmark.stage_two", "comparison"},
    {"ncp_stage", "workdir", "validation", "models.nvae_readjust", "nvae_names"}
    | {"bounds"},
    {"evaluation", "nvae_import", "architectures"},
    {"wiring", "likelihood"},
    {"sample_stage", "import_stage", "picture_scores"},
    {"sample_measures", "benchmark_stage"},
    {"evaluate_stage"},
    {"experiment"},
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
WITHOUT_JAX = ("report", "benchmark_page", "page", "plots", "group_plots", "quantities")
WITHOUT_JAX += (
    "comparison",
    "tables",
    "galleries",
    "distance_plots",
    "summary",
    "published",
)
MAY_READ_CONFIG = {"workdir", "validation", "wiring", "import_stage", "experiment"}
BAD_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


def module_name(path):
    """A package that offers names goes by its own, as in `import`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py" or path.stat().st_size
}
MODULES.pop("", None)  # the package's own docstring


def imports(path):
    """Every module that a file imports, wherever in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}".removeprefix("ncp_jax.")
                if submodule in MODULES:
                    yield f"ncp_jax.{submodule}"
                else:
                    yield node.module


def inner(name):
    """What a module imports from this package."""
    found = {i for i in imports(MODULES[name]) if i.split(".")[0] == "ncp_jax"}
    return {i.removeprefix("ncp_jax.") for i in found}


def test_every_module_has_a_layer():
    assert sum(map(len, LAYERS)) == len(DEPTH)  # and only one
    assert DEPTH.keys() == MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name):
    upwards = {i for i in inner(name) if DEPTH[i] >= DEPTH[name]}
    assert not upwards


def test_nobody_sees_the_composition_root():
    assert not [name for name in MODULES if "experiment" in inner(name)]


def test_settings_stop_at_the_wiring():
    readers = {name for name in MODULES if "config" in inner(name)}
    assert readers <= MAY_READ_CONFIG
    with_dicts = {
        name
        for name, path in MODULES.items()
        if any(i.split(".")[0] == "ml_collections" for i in imports(path))
    }
    assert with_dicts <= {
        "config",
        "validation",
        "wiring",
        "import_stage",
        "experiment",
    }


def outer(name):
    """The outside packages that a module needs, itself or through others."""
    todo, seen, packages = [name], set(), set()
    while todo:
        module = todo.pop()
        seen.add(module)
        packages |= {i.split(".")[0] for i in imports(MODULES[module])}
        todo += inner(module) - seen
    return packages


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_a_report_needs_no_jax(name):
    assert not outer(name) & {"jax", "jaxlib", "flax", "optax", "orbax"}


def test_the_search_for_packages_follows_imports():
    assert {"jax", "flax", "optax"} <= outer("experiment")
    assert "jax" in outer("workdir")  # through importance


def test_no_module_is_a_drawer():
    assert not {name.split(".")[-1] for name in MODULES} & BAD_NAMES


def test_samplers_know_no_model():
    within = {name for name in MODULES if name.split(".")[0] == "samplers"}
    assert len(within) == 4
    seen = {i for name in within for i in inner(name)} - within
    assert seen == {"rng", "distributions"}
