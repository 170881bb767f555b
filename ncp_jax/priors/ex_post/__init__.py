"""Priors fitted to the encodings of a frozen VAE of one latent vector, one a file.

Knows what a prior over one vector offers and how each learns it.  Knows no VAE, no data
set and no run: encodings come as arrays.
"""

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError, did_you_mean
from ncp_jax.priors.ex_post import contract


class Known(NamedTuple):
    """Where the settings of a prior are, and what its name says of them."""

    module: str
    settings: str = "Settings"
    fields: Mapping[str, Any] = types.MappingProxyType({})


DEEP = {  # the larger ratio of `mnist_mlp.py:deep`, chosen on validation pictures
    "hidden_dims": (300,) * 4,
    "activation": "swish",
    "training": contract.Training(8_000, 1_024, learning_rate=4e-3, weight_decay=0.3),
}
PRIORS = {
    "gaussian": Known("gaussian"),
    "gmm": Known("gmm"),
    "vamp": Known("vamp"),
    "flow": Known("flow"),
    "autoregressive": Known("autoregressive"),
    "autoregressive_ensemble": Known("autoregressive", "EnsembleSettings"),
    "lars": Known("rejection", "LARSSettings"),
    "trs": Known("rejection", "TRSSettings"),
    "snis": Known("snis"),
    "his": Known("his"),
    "ebm": Known("ebm"),
    "ncp": Known("ncp"),
    "ncp_several": Known("ncp", fields={"num_negatives": 8}),
    "ncp_ranking": Known("ncp", fields={"num_negatives": 8, "ranking_weight": 10.0}),
    "ncp_weighted": Known("ncp", fields={"negative_weight": 100.0}),
    "ncp_ensemble": Known("ncp", "EnsembleSettings", {"member": DEEP}),
    "multistage": Known("multistage"),
    "implicit": Known("ncp", fields={"hidden_dims": (500, 500, 500), "dropout": 0.5}),
    "two_stage": Known("two_stage"),
    "diffusion": Known("diffusion"),
}
WITH_DEEP = "_deep"  # "snis_deep": its ratio is the larger one, trained as DEEP says
OVER = "_over_"  # "ncp_over_gmm": the first reweights the second, which is fitted first
AND = "_and_"  # "ncp_deep_and_autoregressive": the geometric mean of both densities
FROM = "_from_"  # "ncp_deep_from_autoregressive": the second proposes the first's draws
BASES = (  # exact ones
    "gmm",
    "vamp",
    "flow",
    "autoregressive",
    "autoregressive_ensemble",
    "lars",
    "diffusion",
)
PROPOSALS_OVER = 200  # of SIR: a fitted base is near q, and more do no better
POOLED = (*BASES, "ncp", "implicit", "ebm", "multistage")  # how the names of A begin
NAMES = (  # of a whole comparison; ensembles and others over others may be named
    *(name for name in PRIORS if not name.endswith("_ensemble")),
    "ncp_deep",
    "snis_deep",
    "lars_deep",
    "ncp_over_gmm",
    "ncp_over_flow",
    "ncp_deep_over_gmm",
    "ncp_deep_and_autoregressive",
)
SHARES = (".dropout", ".acceptance")  # settings below 1
ABOVE_0 = (".acceptance", ".learning_rate", ".step_size")
LEAST = {  # else 1 of whole numbers that are not 0: the first that fits the name
    ".sampling.num_steps": 0,  # of MALA, after the resampling
    ".num_mala_steps": 0,  # that move a pool
    ".sampling.num_proposals": 1,
    "_proposals": 2,  # that an encoding is one of
    ".num_attempts": 2,
    ".negative_weight": 1,
}


def settings_of(
    name: str,
    changes: Mapping[str, Any] | contract.Fit | None = None,
    others: Mapping[str, Mapping[str, Any] | contract.Fit] | None = None,
) -> Any:
    """Returns how a prior is fitted: a frozen dataclass, a `contract.Fit`.

    Args:
      name: of `PRIORS`, with "_deep" behind it for the larger ratio; or A_over_B: A in
        the place of whose base stands B of `BASES`.  Or A_and_B: the geometric mean of
        the densities of A of any such name and B of `BASES`, which proposes the draws.
        Or A_from_B: A alone, whose draws B proposes.
      changes: of its fields; those of a field that holds settings are a mapping again,
        e.g. {"training": {"num_steps": 100}}.  Or what fits a prior of one's own, of
        any name, which is returned.
      others: the changes of other priors by name: one that is built on another is
        built on that one as it is changed.

    Raises:
      InputError: there is no such prior or field.
    """
    if callable(changes):
        return changes
    if AND in str(name) or FROM in str(name):
        return _pooled(str(name), changes or {}, others or {})
    own, over, base = str(name).partition(OVER)
    kind = own.removesuffix(WITH_DEEP)
    if kind not in PRIORS or (over and base not in BASES):
        hint = did_you_mean(str(name).lower(), (*PRIORS, *NAMES))
        raise InputError(
            f"there is no prior {name!r}.{hint} There are {', '.join(PRIORS)}; those "
            "with a larger ratio: 'ncp_deep'; those that reweight another, over "
            f"{', '.join(BASES)}: 'ncp_over_gmm'; and pools of two: "
            "'ncp_deep_and_autoregressive'"
        )
    known = PRIORS[kind]
    module = importlib.import_module(f"{__name__}.{known.module}")
    settings = changed(name, getattr(module, known.settings)(), known.fields)
    if kind != own:
        if not hasattr(settings, "activation"):
            raise InputError(f"prior {name!r}: {kind} has no larger ratio")
        settings = changed(name, settings, DEEP)
    if over:
        if not hasattr(settings, "base"):
            raise InputError(f"prior {name!r}: {own} reweights no other prior")
        of_base = settings_of(base, (others or {}).get(base))
        settings = dataclasses.replace(settings, base=of_base)
        if hasattr(settings, "sampling"):
            fewer = {"sampling": {"num_proposals": PROPOSALS_OVER}}
            settings = changed(name, settings, fewer)
    return changed(name, settings, changes or {})


def _pooled(
    name: str,
    changes: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any] | contract.Fit],
) -> Any:
    """How A_and_B or A_from_B is fitted."""
    first, last, second = _parted(name)
    if not first.startswith(POOLED) or second not in BASES:
        hint = did_you_mean(name.lower(), NAMES)
        raise InputError(
            f"prior {name!r}: the second is one of {', '.join(BASES)}, and the name of "
            f"the first begins with one of {', '.join(POOLED)}.{hint}"
        )
    of_first = settings_of(first, others.get(first), others)
    of_second = settings_of(second, others.get(second), others)
    module = importlib.import_module(f"{__name__}.ncp")
    settings = module.PooledSettings(of_first, of_second)
    if last == FROM:  # A alone, which B may be far from
        settings = dataclasses.replace(
            settings, weight=1.0, num_proposals=PROPOSALS_OVER
        )
    return changed(name, settings, changes)


def needs_posterior(name: str) -> bool:
    """Whether a prior, or one that it is made with, is made of q(z | x) itself."""
    return "vamp" in name.replace(AND, OVER).replace(FROM, OVER).split(OVER)


def built_on(name: str) -> set[str]:
    """The other priors that a prior is made with, each with its own settings."""
    if AND in name or FROM in name:
        first, _, second = _parted(name)
        return {first, second} | built_on(first)
    _, over, base = name.partition(OVER)
    return {base} if over else set()


def _parted(name: str) -> tuple[str, str, str]:
    """A, "_and_" or "_from_", and B; A may be such a name again."""
    return name.rpartition(max((AND, FROM), key=name.rfind))


def shortened(settings: Any, max_steps: int, max_draws: int) -> Any:
    """The same settings with at most so many updates and draws, in what they hold too.

    Args:
      settings: of a prior.
      max_steps: updates; 0 for no bound.
      max_draws: of every number of draws or proposals; 0 for no bound.  Fewer than a
        prior can do with are not left.
    """
    values: dict[str, Any] = {}
    is_training = isinstance(settings, contract.Training)
    num_attempts = getattr(settings, "num_attempts", 1)  # others' draws, for each
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        most = max_draws if field.name.endswith(("_draws", "_proposals")) else 0
        if is_training and field.name in ("num_steps", "steps_per_eval"):
            most = max_steps
        if dataclasses.is_dataclass(value):
            value = shortened(value, max_steps, max_draws)
        elif most and isinstance(value, int):
            fewest = max(_least(f".{field.name}", value), num_attempts - 1)
            value = min(value, max(most, fewest))
        values[field.name] = value
    return dataclasses.replace(settings, **values)


def changed(name: str, settings: Any, changes: Any) -> Any:
    """The same settings with other values of some fields."""
    fields = {field.name: field for field in dataclasses.fields(settings)}
    if not isinstance(changes, Mapping):
        raise InputError(f"prior {name!r} takes a section of settings, got {changes!r}")
    if unknown := sorted(map(str, changes.keys() - fields.keys())):
        raise InputError(
            f"prior {name!r} has no setting {unknown[0]!r}: there are "
            f"{', '.join(fields) or 'none'}.{_meant(unknown[0], settings, fields)}"
        )
    values = {
        field: _value(f"{name}.{field}", fields[field].type, before, changes[field])
        for field in changes
        for before in [getattr(settings, field)]
    }
    return dataclasses.replace(settings, **values)


def _meant(unknown: str, settings: Any, fields: Iterable[str]) -> str:
    """The setting that was perhaps meant, also that of a section of the same name."""
    for section in fields:
        part = getattr(settings, section)
        if dataclasses.is_dataclass(part) and hasattr(part, unknown):
            return f" Did you mean {{{section!r}: {{{unknown!r}: ...}}}}?"
    return did_you_mean(unknown, fields)


def _value(name: str, kind: Any, before: Any, value: Any) -> Any:
    """A value of the type that the field's default has; others are refused."""
    if dataclasses.is_dataclass(before) and isinstance(value, Mapping):
        return changed(name, before, value)
    if before is None or dataclasses.is_dataclass(before):  # or a fit of one's own
        is_none = value is None and type(None) in typing.get_args(kind)
        if is_none or callable(value) or isinstance(value, type(before)):
            return value
        what = "what fits a prior" if before is None else "a section of settings"
        raise InputError(f"prior setting {name!r} takes {what}, got {value!r}")
    if isinstance(before, tuple):
        parts = value if isinstance(value, list | tuple) else (value,)
        if not parts:
            raise InputError(f"prior setting {name!r} takes one value or more")
        return tuple(_value(name, None, before[0], part) for part in parts)
    if name.endswith(".activation") and not _is_activation(value):
        raise InputError(f"prior setting {name!r}: jax.nn has no activation {value!r}")
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    is_number = isinstance(before, int | float)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_fine = is_whole if isinstance(before, int) else isinstance(value, type(before))
    if isinstance(before, float) and is_whole:
        value, is_fine = float(value), True
    if not is_fine or (choices and value not in choices):
        what = f"one of {choices}" if choices else f"values like {before!r}"
        raise InputError(f"prior setting {name!r} takes {what}, got {value!r}")
    if is_number:
        _check_range(name, before, value)
    return value


def _is_activation(name: Any) -> bool:
    """Whether jax.nn has such a function of one array that keeps its shape."""
    try:
        function: Any = getattr(jax.nn, str(name), None)
        h = jnp.zeros((2, 2))
        return jax.eval_shape(function, h).shape == h.shape
    except (TypeError, ValueError, AttributeError):
        return False


def _least(name: str, before: float) -> int:
    least = int(isinstance(before, int) and before > 0)
    return next((n for end, n in LEAST.items() if name.endswith(end)), least)


def _check_range(name: str, before: float, value: float) -> None:
    """Refuses a negative number, a share of all, and no update, draw or layer."""
    least = _least(name, before)
    is_fine, what = math.isfinite(value) and value >= least, f"numbers from {least} on"
    if name.endswith(SHARES):
        is_fine, what = is_fine and value < 1, "a share below 1"
    if name.endswith(ABOVE_0):
        is_fine, what = is_fine and value > 0, f"{what}, above 0"
    if not is_fine:
        raise InputError(f"prior setting {name!r} takes {what}, got {value!r}")
