"""The JSON records of a run: config.json and results.json, checked field by field."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from ncp_jax.errors import InputError

T = TypeVar("T")

CURES = {  # by file, what to do if it is damaged
    "config.json": "delete it; the checkpoints know which config made them",
    "results.json": "delete it and run again what measures: --stage=sample, "
    "--stage=evaluate, --stage=compare",
}
MAX_DEPTH = 12  # of sections within sections; a stage's prior over a prior has eleven
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Spread = Annotated[float, msgspec.Meta(ge=0)]


class Metric(msgspec.Struct):
    """A number with its standard error; null where it is not known or not finite."""

    value: float | None = None
    stderr: _Spread | None = None
    n: _Count | None = None
    unit: str | None = None


class WeightsOf(msgspec.Struct):
    """Which checkpoint a number is of."""

    step: _Count
    fingerprint: str


class StageRecord(msgspec.Struct):
    """What a stage was run with."""

    fingerprint: str = ""
    config: dict[str, Any] = {}
    weights: dict[str, WeightsOf] = {}
    environment: dict[str, Any] = {}


class Run(msgspec.Struct):
    """What results.json says of the run itself, beside versions and devices."""

    seed: int = 0
    config: dict[str, Any] = {}
    wall_seconds: dict[str, _Spread] = {}
    metric_names: dict[str, list[str]] = {}
    stages: dict[str, Any] = {}


class ComparedPrior(msgspec.Struct):
    """One prior of a comparison, as far as its page reads it."""

    density: str
    metrics: dict[str, Metric]
    spreads: dict[str, _Spread | None] = {}


class ComparedAbout(msgspec.Struct):
    """How priors were compared, likewise."""

    num_examples: _Count
    num_fits: _Count


class Compared(msgspec.Struct):
    """Priors side by side; without likelihoods where z is a function of x."""

    about: ComparedAbout
    nll_base: Metric | None
    floor: dict[str, Metric]
    priors: dict[str, ComparedPrior]


class Results(msgspec.Struct):
    """results.json."""

    metrics: dict[str, Any] = {}
    run: Run = msgspec.field(default_factory=Run)


class Data(msgspec.Struct):
    """The section `data` of a config, as far as anything but a person reads it."""

    name: str = ""
    shape: list[int] = []


class Model(msgspec.Struct):
    """The section `vae.model`, likewise."""

    name: str = ""


class VAE(msgspec.Struct):
    """The section `vae`, likewise."""

    model: Model = msgspec.field(default_factory=Model)


class Sample(msgspec.Struct):
    """The section `sample`, likewise."""

    samplers: list[str] = []


class Evaluate(msgspec.Struct):
    """The section `evaluate`, likewise."""

    split: str = "test"


class Config(msgspec.Struct):
    """config.json: of older runs, some settings may be lacking."""

    seed: int = 0
    data: Data = msgspec.field(default_factory=Data)
    vae: VAE = msgspec.field(default_factory=VAE)
    ncp: dict[str, Any] = {}
    sample: Sample = msgspec.field(default_factory=Sample)
    evaluate: Evaluate = msgspec.field(default_factory=Evaluate)
    report: dict[str, Any] = {}
    benchmark: dict[str, Any] = {}


def read_config(path: Path) -> dict[str, Any] | None:
    """Returns the content of a config.json, None if there is no such file.

    Raises:
      InputError: it is damaged, or a field is of another type; names the field.
    """
    remedy = CURES["config.json"]
    content = read_json(path, remedy)
    if content is not None:
        checked(path, remedy, content, Config)
    return content


def read_results(path: Path) -> dict[str, Any] | None:
    """Returns the content of a results.json, None if there is no such file.

    Raises:
      InputError: as of `read_config`.
    """
    remedy = CURES["results.json"]
    content = read_json(path, remedy)
    if content is None:
        return None
    found = checked(path, remedy, content, Results)
    for name, metric in found.metrics.items():
        checked(path, remedy, metric, Metric, f"metrics[{name!r}]")
    if isinstance(content.get("priors"), dict):
        checked(path, remedy, content["priors"], Compared, "priors")
    run = found.run
    checked(path, remedy, run.config, Config, "run.config")
    for name, stage in run.stages.items():
        where = f"run.stages[{name!r}]"
        record = checked(path, remedy, stage, StageRecord, where)
        checked(path, remedy, record.config, Config, f"{where}.config")
    return content


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """Returns the object that a JSON file holds, None if there is no such file.

    Args:
      path: of the file.
      remedy: what to do if it is damaged; a clause for the error.

    Raises:
      InputError: it is no JSON, no object, or nested beyond sense.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: {remedy}")
    if _is_deeper(content, MAX_DEPTH):
        raise InputError(
            f"{path} is not one of ours (more than {MAX_DEPTH} sections within one "
            f"another): {remedy}"
        )
    return content


def checked(path: Path, remedy: str, content: Any, kind: type[T], where: str = "") -> T:
    """Returns a part of a record as what it must be.

    Args:
      path: of the file, for the error.
      remedy: as of `read_json`.
      content: JSON values.
      kind: the type.
      where: the part's place in the file; "" for the whole.

    Raises:
      InputError: a field is of another type; names it.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        reason, _, place = str(error).partition(" - at `$")
        field = f"{where}{place.rstrip('`')}".lstrip(".") or "the whole"
        raise InputError(
            f"{path} is not one of ours ({field}: {reason}): {remedy}"
        ) from error


def _is_deeper(content: Any, depth: int) -> bool:
    if not isinstance(content, dict | list):
        return False
    parts = content.values() if isinstance(content, dict) else content
    return depth == 0 or any(_is_deeper(part, depth - 1) for part in parts)
