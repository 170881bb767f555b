"""What is installed: declared dependencies suffice, and a wheel needs no checkout."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ncp_jax
from ncp_jax.experiment.setup import config_files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ncp_jax"
PRETRAINED = ROOT / "results" / "pretrained"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {  # import -> extra
    "tensorflow_datasets": "tfds",
    "torch": "torch",
    "blackjax": "chains",
    "numpyro": "chains",
    "pyarrow": "parquet",
}
DISTRIBUTIONS = {  # where an import is not called like what is installed
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "tensorboardX": "tensorboardx",
}
OUR_OWN = {"ncp_jax"}
# Imported only where what a module offers needs it: nobody who measures does.
HEAVY = ("orbax", "tensorboardX", "tqdm", "clu", "ml_collections", "matplotlib", "PIL")


def declared(*extras):
    """{canonical name: requirement as written} of the package and of these extras."""
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name): line for line in lines}


def third_party(path):
    """The packages that a file imports, wherever in it, but the standard library's."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names - sys.stdlib_module_names - OUR_OWN


def distribution(name):
    return canonicalize_name(DISTRIBUTIONS.get(name, name))


FILES = [*PACKAGE.rglob("*.py"), *config_files.FOLDER.glob("*.py")]
IMPORTS = {name for path in FILES for name in third_party(path)}


# --- dependencies


def test_every_import_is_a_declared_dependency():
    assert {
        "jax",
        "orbax",
        "tensorflow_datasets",
    } <= IMPORTS  # so the search finds some
    needed = {distribution(name) for name in IMPORTS - OPTIONAL.keys()}
    assert needed <= declared().keys()
    for name in OPTIONAL:
        assert distribution(name) in declared(OPTIONAL[name])
        assert distribution(name) not in declared()


def test_every_declared_dependency_is_imported():
    imported = {distribution(name) for name in IMPORTS}
    assert declared().keys() - imported == {"jaxlib"}  # pinned beside jax


def test_requirements_are_those_of_the_package_and_of_its_data():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert sorted(listed) == sorted(declared("tfds").values())


def test_numpy_is_one_whose_savez_takes_allow_pickle():
    """Those before 2.2 store it as an array of that name, which no reader expects."""
    asked = Requirement(declared()["numpy"]).specifier
    assert "2.2.0" in asked and "2.1.3" not in asked


def test_what_is_optional_is_imported_late():
    """So that every other module imports without it."""
    late = ("torch", "blackjax", "numpyro")  # each module itself imported late
    named = {f"in_{name}.py" for name in late}
    allowed = {path for path in FILES if path.name in named}
    for path in set(FILES) - allowed:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert (
                    not {ast.unparse(node).split()[1].split(".")[0]} & OPTIONAL.keys()
                )


def test_likelihoods_import_no_more_than_they_use():
    code = "import sys, ncp_jax.evaluation.likelihood; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    loaded = set(out.stdout.split())
    assert "ncp_jax.evaluation.bounds" in loaded, out.stderr
    assert not loaded & set(HEAVY)


def test_the_version_stands_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", ncp_jax.__version__)
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {ncp_jax.__version__} " in changes


# --- a wheel, made from the sdist, in an environment without the checkout


def run(*command, **keywords):
    """Runs to its end and returns what it printed; the test fails if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **keywords)
    assert done.returncode == 0, (
        f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"import hatchling.build; hatchling.build.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The file that is published."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "-q", "-w", str(folder), str(sdist))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of an environment that has the wheel and what it declares, no more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))
    with zipfile.ZipFile(wheel) as packed:
        (metadata,) = (n for n in packed.namelist() if n.endswith("METADATA"))
        text = packed.read(metadata).decode()
    for name in closure(re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)):
        link(name, site)
    pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"))
    run(*pip, "install", "-q", "--no-deps", "--no-index", str(wheel))
    return folder / "bin"


def closure(requirements):
    """The names of what these lines ask for, and of what that asks for."""
    todo, seen = [(line, frozenset({""})) for line in requirements], set()
    while todo:
        line, extras = todo.pop()
        wanted = Requirement(line)
        here = [{"extra": extra} for extra in extras]
        if wanted.marker and not any(map(wanted.marker.evaluate, here)):
            continue
        asked = frozenset({"", *wanted.extras})
        name = canonicalize_name(wanted.name)
        if (name, asked) in seen:
            continue
        seen.add((name, asked))
        found = importlib.metadata.distribution(name)
        assert wanted.specifier.contains(found.version, prereleases=True), line
        todo += [(more, asked) for more in found.requires or ()]
    return {name for name, _ in seen}


def link(name, site):
    """Lends the tests' own copy of a distribution to another environment."""
    found = importlib.metadata.distribution(name)
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(found.locate_file(top).resolve())


@pytest.fixture
def elsewhere(tmp_path):
    """Keywords of a process in an empty folder, which finds no checkout."""
    kept = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": kept | {"JAX_PLATFORMS": "cpu"}}


@pytest.mark.slow
def test_the_sdist_holds_what_its_tests_read(sdist):
    tracked = {"README.md", "CHANGELOG.md", "LICENSE", "main.py", "requirements.txt"}
    assert tracked <= {path.name for path in sdist.iterdir()}
    for folder in ("configs", "docs", "ncp_jax", "results", "tests"):
        here, there = (
            {str(p.relative_to(root)) for p in (root / folder).rglob("*.*")}
            for root in (ROOT, sdist)
        )
        assert {p for p in here if "__pycache__" not in p} == there
    run(
        *(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"),
        *("tests/test_layering.py", "tests/experiment/setup/test_config.py"),
        cwd=sdist,
    )


@pytest.mark.slow
def test_the_wheel_holds_rooms_configs_and_the_type_marker(wheel):
    with zipfile.ZipFile(wheel) as packed:
        held = {n for n in packed.namelist() if ".dist-info/" not in n}
        (metadata,) = (n for n in packed.namelist() if n.endswith("METADATA"))
        text = packed.read(metadata).decode()
    modules = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*.py")}
    configs = {f"ncp_jax/configs/{name}.py" for name in config_files.names()}
    weights = {f"ncp_jax/pretrained/{path.name}" for path in PRETRAINED.iterdir()}
    typed = {"ncp_jax/py.typed", "ncp_jax/__init__.pyi"}
    assert held == modules | configs | weights | typed
    assert f"\nVersion: {ncp_jax.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text


@pytest.mark.slow
def test_the_installed_package_imports_whole(installed, elsewhere):
    code = (
        "import pkgutil, importlib, ncp_jax\n"
        "for module in pkgutil.walk_packages(ncp_jax.__path__, 'ncp_jax.'):\n"
        "  last = module.name.split('.')[-1]\n"
        "  if last != '__main__' and not last.startswith('in_'):  # optional\n"
        "    importlib.import_module(module.name)\n"
        "from ncp_jax.experiment.setup import config_files\n"
        "assert config_files.WEIGHTS.parts[-2:] == ('ncp_jax', 'pretrained')\n"
        "print(ncp_jax.__file__, ncp_jax.__version__, *config_files.names())\n"
        "for name in config_files.names(): config_files.load(name, 'smoke')\n"
    )
    file, version, *names = run(
        str(installed / "python"), "-c", code, **elsewhere
    ).split()
    assert Path(file).is_relative_to(installed.parent)
    assert (version, names) == (ncp_jax.__version__, config_files.names())


@pytest.mark.slow
def test_the_installed_program_runs_digits(installed, elsewhere, tmp_path):
    command = (str(installed / "python"), "-m", "ncp_jax")
    shown = run(*command, "--config=digits:smoke", "--workdir=run", **elsewhere)
    assert "run/report/index.html" in shown
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["nll_ncp"]["n"] > 0
    environment = results["run"]
    assert environment["git_commit"] == "unknown"  # not that of a folder around it
    assert environment["ncp_jax"] == ncp_jax.__version__
    console = run(str(installed / "ncp_jax"), "--help", **elsewhere)
    assert console == run(*command, "--help", **elsewhere)


@pytest.mark.slow
def test_without_an_extra_the_program_names_it(installed, elsewhere):
    data = ("--config.data.name=tfds:mnist", "--config.data.shape=(28, 28, 1)")
    command = (str(installed / "ncp_jax"), "--config=digits:smoke", *data)
    done = subprocess.run(
        [*command, "--workdir=run"], capture_output=True, text=True, **elsewhere
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pip install '.[tfds]'" in done.stderr
