"""What values the settings may have; refused before anything is made of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ncp_jax.errors import InputError, local_path
from ncp_jax.evaluation.picture_classifier import LEAST_PICTURES
from ncp_jax.experiment.setup import schema
from ncp_jax.experiment.setup.config import DISCRIMINATORS, VAES
from ncp_jax.experiment.setup.workdir import ENERGIES
from ncp_jax.models import stacks
from ncp_jax.models.mlp_vae import LIKELIHOODS
from ncp_jax.models.rae.model import KINDS
from ncp_jax.nested import flatten
from ncp_jax.pages.parts.quantities import SAMPLERS
from ncp_jax.priors import conditional, ex_post
from ncp_jax.priors.conditional.groups import Groups
from ncp_jax.training import optimizers
from ncp_jax.training.ncp import held_out
from ncp_jax.training.ncp.signal_settings import CONTEXTS, SignalSettings

PARTS = (  # of the benchmark
    "training",
    "samplers",
    "alone",
    "chains",
    "stage_two",
    "scaling",
)
DTYPES = ("float32", "bfloat16")
ACTIVATIONS = ("tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "swish", "softplus")


def validate(config: ConfigDict) -> None:
    """Refuses settings that cannot work, naming the field and what is allowed.

    Raises:
      InputError: for the first such field.
    """
    for name, value in flatten(config.to_dict()):
        if name.startswith("compare.priors."):
            continue  # `_check_priors` knows what they may be
        _check_bits(name, value)
        if name in _LISTS:
            _LISTS[name](name, value)
        elif isinstance(value, tuple | list):
            _require_integers(name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            is_allowed = value > 0 or (name in MAY_BE_ZERO and value == 0)
            if not (is_allowed and math.isfinite(value)):
                at_least = "zero or more" if name in MAY_BE_ZERO else "positive"
                raise InputError(
                    f"config.{name} must be finite and {at_least}, got {value}"
                )
    for name in PATHS:
        section, field = name.split(".")
        for path in config[section][field].split(","):
            local_path(f"config.{name}", path.strip())
    for section in ("vae", "ncp"):
        if config[section].ema_decay >= 1.0:
            raise InputError(f"config.{section}.ema_decay must be below 1")
    if config.ncp.negative_weight < 1.0:
        raise InputError(
            "config.ncp.negative_weight must be 1 (the paper's loss) or more, got "
            f"{config.ncp.negative_weight}"
        )
    for name, allowed in _choices(config).items():
        value = dict(flatten(config.to_dict()))[name]
        if value not in allowed:
            raise InputError(f"config.{name} must be one of {allowed}, got {value!r}")
    vae = config.vae
    if vae.kl_warmup_fraction + vae.kl_constant_fraction > 1.0:
        raise InputError(
            "config.vae.kl_warmup_fraction and kl_constant_fraction add up to more "
            "than 1: the KL would never have its full weight"
        )
    if vae.kl_constant_fraction and not vae.kl_warmup_fraction:
        raise InputError(
            "config.vae.kl_constant_fraction is before a warm-up, and there is none: "
            "give config.vae.kl_warmup_fraction, or make it 0"
        )
    for section in ("vae", "ncp"):
        settings = config[section]
        if settings.final_learning_rate and settings.schedule != "cosine":
            raise InputError(
                f"config.{section}.final_learning_rate is where the schedule 'cosine' "
                f"ends; config.{section}.schedule is {settings.schedule!r}: make it 0"
            )
    if vae.initial_penalty_weight and not vae.penalty_weight:
        raise InputError(
            "config.vae.initial_penalty_weight needs a config.vae.penalty_weight"
        )
    if config.evaluate.num_binarizations > 1 and config.data.binarization != "dynamic":
        raise InputError(
            "config.evaluate.num_binarizations is for data that are binarised afresh; "
            f"config.data.binarization is {config.data.binarization!r}"
        )
    _check_origin(config)
    _check_energies(config)
    _check_autoencoder(config)
    _check_learned_prior(config)
    _check_features(config)
    _check_audit(config)
    _check_priors(config)
    for section in ("ncp", "compare"):
        share = config[section].directions.share
        if share > 1:
            raise InputError(
                f"config.{section}.directions.share is of the signal, at most 1; got "
                f"{share}"
            )
    if config.ncp.standardize and config.ncp.directions.cap:
        raise InputError(
            "config.ncp.standardize is for discriminators of whole groups; signal "
            "directions (config.ncp.directions.cap) are standardised as they are: give "
            "one or the other"
        )
    _check_directions(config)
    if config.data.num_bits > 8:
        raise InputError(
            f"config.data.num_bits is at most 8, got {config.data.num_bits}"
        )


def _check_directions(config: ConfigDict) -> None:
    """Refuses directions that exclude each other, or are asked for without a cap."""
    settings = config.ncp.directions
    if settings.cap:
        try:
            SignalSettings(**settings.to_dict())
        except InputError as error:
            raise InputError(f"config.ncp.directions: {error}") from error
    elif settings.context == "features" or settings.with_maps:
        raise InputError(
            "config.ncp.directions.context = 'features' and with_maps are for signal "
            "directions: give config.ncp.directions.cap, the most of a group, or leave "
            "them as they were"
        )


def _check_origin(config: ConfigDict) -> None:
    """Refuses a stage 1 from several places, and a file of weights of no such name."""
    origins = ("checkpoint", "workdir", "pretrained", "resume", "init_from")
    given = [f"config.vae.{name}" for name in origins if config.vae[name]]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} each say where stage 1 comes from: give one of them"
        )
    file = config.export.file
    if file and (not is_stage_1(config) or not file.endswith(".npz")):
        raise InputError(
            f"config.export.file={file} is for --config.export.format=weights or "
            "state, and ends in .npz: mend it or leave it out"
        )
    dtype = config.export.dtype
    if dtype != "float32" and config.export.format != "weights":
        raise InputError(
            f"config.export.dtype={dtype} is for --config.export.format=weights: leave "
            "it out"
        )


def is_stage_1(config: ConfigDict) -> bool:
    """Whether what --stage=export writes is of stage 1, and not pictures."""
    return config.export.format in ("weights", "state")


def check_stage(config: ConfigDict, stage: str) -> None:
    """Refuses stages that need a density where stage 1 has a prior without one.

    Raises:
      InputError: naming the stage that is left.
    """
    is_compared = stage == "compare" or (stage == "all" and config.compare.names)
    if stage == "benchmark" and config.vae.prior != "gaussian":
        raise InputError(
            "--stage=benchmark times samplers on a normal base prior, which "
            f"config.vae.prior = {config.vae.prior!r} is not"
        )
    is_free = stage in ("vae", "report", "import") or is_compared
    if stage == "export" and is_stage_1(config):
        is_free = True
    if config.vae.prior != "snis" or is_free:
        return
    raise InputError(
        "config.vae.prior = 'snis' has a bound in the place of a density, which stage "
        f"2 cannot reweight (--stage={stage}): its likelihood and samples are what "
        "--stage=compare measures, or the whole run with --config.compare.names="
        "\"('gaussian',)\""
    )


def _check_learned_prior(config: ConfigDict) -> None:
    """Refuses a learned prior of a model without one, and what its base cannot do."""
    name, settings = config.vae.prior, config.vae.prior_settings
    if name == "gaussian":
        return
    if config.vae.model.name != "mlp":
        raise InputError(
            f"config.vae.prior = {name!r} is for the model 'mlp', of one latent "
            f"vector: config.vae.model.name is {config.vae.model.name!r}"
        )
    if (
        settings.acceptance >= 1.0
        or min(settings.num_attempts, settings.num_proposals) < 2
    ):
        raise InputError(
            "config.vae.prior_settings: acceptance must be below 1, num_attempts and "
            f"num_proposals 2 or more; got {settings.acceptance}, "
            f"{settings.num_attempts} and {settings.num_proposals}"
        )
    of_noise = {
        "ncp.standardize": config.ncp.standardize,
        "ncp.directions.cap": config.ncp.directions.cap,
        "sample.langevin_in_noise": config.sample.langevin_in_noise,
        "sample.samplers": {"mala", "sirmala"} & set(config.sample.samplers),
        "sample.temperature": config.sample.temperature != 1.0,
    }
    for field, is_asked in of_noise.items():
        if is_asked:
            value = config[field.split(".")[0]]
            for part in field.split(".")[1:]:
                value = value[part]
            raise InputError(
                f"config.{field} = {schema.shown(value)} is of a normal prior's noise, "
                f"which config.vae.prior = {name!r} has not: leave it at its default"
            )


def _check_bits(name: str, value: Any) -> None:
    bits = 32 if name in ("seed", "ncp.seed") else 31
    numbers = value if isinstance(value, tuple | list) else (value,)
    if any(isinstance(n, int) and abs(n) >= 2**bits for n in numbers):
        what = "seeds" if bits == 32 else "steps and sizes"
        raise InputError(
            f"config.{name} must be below 2**{bits} = {2**bits:,}, as {what} are kept "
            f"in 32 bits; got {schema.shown(value)}"
        )


def _check_energies(config: ConfigDict) -> None:
    """Refuses energies of pictures that cannot be told what pictures are like."""
    settings = config.vaebm
    if settings.replay_share > 1:
        raise InputError(
            "config.vaebm.replay_share is a share, at most 1; got "
            f"{settings.replay_share}"
        )
    if settings.ema_decay >= 1.0:
        raise InputError("config.vaebm.ema_decay must be below 1")
    if settings.replay_share and settings.num_chains < settings.batch_size:
        raise InputError(
            f"config.vaebm.num_chains = {settings.num_chains} are fewer than the "
            f"batch_size = {settings.batch_size} that is drawn of them"
        )
    if settings.num_valid < 2:
        raise InputError("config.vaebm.num_valid must be 2 or more")
    named = set(ENERGIES) & {*config.sample.samplers, config.export.sampler}
    if named and config.data.binarization == "fixed":
        raise InputError(
            f"{min(named)!r} learns from grey pictures, as the means of p(x | z) are, "
            "and with config.data.binarization = 'fixed' there are none: give 'dynamic'"
        )


_DETERMINISTIC = tuple(kind for kind in KINDS if kind != "vae")
_OF_KINDS = {  # which kinds of "rae" read a setting that not all of them read
    "max_log_std": ("vae",),
    "likelihood_std": ("vae",),
    "is_std_learned": ("vae",),
    "reconstruction_weight": _DETERMINISTIC,
    "input_noise": _DETERMINISTIC,
    "embedding_weight": ("rae", "rae_l2", "rae_gp", "rae_sn"),
    "regularizer_weight": ("wae", "rae_l2", "rae_gp"),
    "has_dense_penalty": ("rae_l2",),
}


def _check_autoencoder(config: ConfigDict) -> None:
    """Refuses settings that would have no effect on an autoencoder of this kind."""
    model = config.vae.model
    if model.name != "rae":
        return
    for field, kinds in _OF_KINDS.items():
        default = VAES["rae"][field]
        if model.kind not in kinds and model[field] != default:
            raise InputError(
                f"config.vae.model.{field} = {model[field]} is nothing that the kind "
                f"{model.kind!r} is trained by; make it {default}, or choose another "
                "config.vae.model.kind"
            )
    if model.kind == "vae":
        return
    if config.vae.kl_warmup_fraction or config.vae.kl_constant_fraction:
        raise InputError(
            "config.vae.kl_warmup_fraction and kl_constant_fraction weigh a KL, which "
            f"config.vae.model.kind = {model.kind!r} does not have"
        )


def _check_features(config: ConfigDict) -> None:
    """Refuses a feature network without weights, and samplers that do not draw."""
    settings = config.evaluate
    if bool(settings.feature_net) != bool(settings.feature_weights):
        raise InputError(
            "config.evaluate.feature_net and config.evaluate.feature_weights go "
            "together: the name of a network and the file of its weights (docs, "
            "What is measured), or neither"
        )
    for field in ("fid_samplers", "audit_samplers"):
        idle = set(settings[field]) - set(config.sample.samplers)
        if idle:
            raise InputError(
                f"config.evaluate.{field} names {sorted(idle)}, which are not among "
                f"config.sample.samplers = {tuple(config.sample.samplers)}"
            )
    if 0 < settings.num_mmd_samples < 3:
        raise InputError(
            "config.evaluate.num_mmd_samples must be 3 or more, or 0 for no MMD; got "
            f"{settings.num_mmd_samples}"
        )


def _check_audit(config: ConfigDict) -> None:
    """Refuses an audit of too few pictures to learn from and to be judged by."""
    for field in ("audit_num_images", "audit_num_draws"):
        number = config.evaluate[field]
        if 0 < number < LEAST_PICTURES:
            raise InputError(
                f"config.evaluate.{field} must be {LEAST_PICTURES} or more, or 0 for "
                f"none; got {number}"
            )
    if config.evaluate.audit_num_draws > config.evaluate.audit_num_images:
        raise InputError(
            f"config.evaluate.audit_num_draws = {config.evaluate.audit_num_draws} is "
            "more than the decoded encodings that they are held against, "
            f"audit_num_images = {config.evaluate.audit_num_images}"
        )


def _check_priors(config: ConfigDict) -> None:
    """Refuses settings that priors do not have.

    Those of priors that are not compared are left alone, so that a command line can
    name a few of the priors that a config has settings for.
    """
    settings = config.compare
    if 0 < settings.num_mmd_samples < 3:
        raise InputError(
            "config.compare.num_mmd_samples must be 3 or more, or 0 for no MMD; got "
            f"{settings.num_mmd_samples}"
        )
    for name, changes in settings.priors.to_dict().items():
        try:
            _settings_of(config, name, changes)
        except InputError as error:
            raise InputError(f"config.compare.priors.{name}: {error}") from error


def _settings_of(config: ConfigDict, name: str, changes: Any) -> None:
    """Refuses changes that a prior does not know, of one group or of several."""
    try:
        ex_post.settings_of(name, changes)
    except InputError:
        if config.vae.model.name == "mlp" or name not in conditional.NAMES:
            raise
        conditional.settings_of(name, Groups((1,)), changes)


PATHS = (  # refused before anything is made, should they be no paths of this machine
    "data.dir",
    "data.cache_dir",
    "vae.checkpoint",
    "vae.workdir",
    "vae.pretrained",
    "vae.resume",
    "vae.init_from",
    "export.file",
    "evaluate.feature_weights",
    "report.workdirs",
)
MAY_BE_ZERO = (
    "seed",
    "compare.directions.context_size",
    "compare.directions.floor",
    "compare.max_draws",
    "compare.max_examples",
    "compare.max_steps",
    "compare.num_mmd_samples",
    "evaluate.audit_num_draws",
    "evaluate.audit_num_images",
    "evaluate.max_examples",
    "evaluate.max_log_z_stderr",
    "evaluate.num_mmd_samples",
    "sample.temperature",
    "sample.chunk_size",
    "sample.memory_mib",
    "sample.num_readjust_iterations",
    "ncp.directions.cap",
    "ncp.directions.context_size",
    "ncp.directions.floor",
    "ncp.patience",
    "ncp.ranking_weight",
    "ncp.seed",
    "vaebm.ema_decay",
    "vaebm.energy_penalty",
    "vaebm.noise_std",
    "vaebm.replay_share",
    "vaebm.spectral_penalty",
    "vaebm.warmup_steps",
    "vae.kl_warmup_fraction",
    "vae.kl_constant_fraction",
    "vae.penalty_weight",
    "vae.initial_penalty_weight",
    "vae.model.embedding_weight",
    "vae.model.input_noise",
    "vae.model.padding",
    "vae.model.regularizer_weight",
    "vae.model.num_flows",
    *(
        f"{section}.{name}"
        for section in ("vae", "ncp")
        for name in ("warmup_steps", "weight_decay", "ema_decay", "final_learning_rate")
    ),
)


def _require_integers(name: str, values: Sequence[Any]) -> None:
    # Not empty: a network without a hidden layer is a linear one, of whatever kind, and
    # nobody who leaves a tuple empty by mistake would see it.
    if not values or not all(type(value) is int and value >= 1 for value in values):
        raise InputError(
            f"config.{name} must hold positive integers, at least one, got {values}"
        )


def _require_groups(name: str, values: Sequence[Any]) -> None:
    if not all(type(value) is int and value >= 0 for value in values):
        raise InputError(f"config.{name} must hold integers from 0 on, got {values}")


def _require_steps(name: str, values: Sequence[Any]) -> None:
    if not all(type(v) in (int, float) and 0 < v < math.inf for v in values):
        raise InputError(f"config.{name} must hold positive numbers, got {values}")


def _require_decays(name: str, values: Sequence[Any]) -> None:
    if not all(type(v) in (int, float) and 0 <= v < math.inf for v in values):
        raise InputError(f"config.{name} must hold numbers from 0 on, got {values}")


def _require_samplers(name: str, values: Sequence[Any]) -> None:
    allowed = tuple(sampler for sampler in SAMPLERS if sampler != "base")
    if not set(values) <= set(allowed) or len(set(values)) < len(values):
        raise InputError(
            f"config.{name} must hold some of {allowed}, each once, got {values}"
        )


def _require_priors(name: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values):
        raise InputError(f"config.{name} must hold each prior once, got {values}")
    for prior in values:
        try:
            ex_post.settings_of(prior)
        except InputError as error:
            raise InputError(f"config.{name}: {error}") from None


def _require_parts(name: str, values: Sequence[Any]) -> None:
    if not values or not set(values) <= set(PARTS):
        raise InputError(f"config.{name} must hold some of {PARTS}, got {values}")


_LISTS: Mapping[str, Callable[[str, Sequence[Any]], None]] = {
    "compare.names": _require_priors,
    "evaluate.audit_groups": _require_groups,
    "evaluate.audit_samplers": _require_samplers,
    "evaluate.fid_samplers": _require_samplers,
    "ncp.weight_decays": _require_decays,
    "sample.groups": _require_groups,
    "sample.langevin_step_sizes": _require_steps,
    "sample.samplers": _require_samplers,
    "benchmark.parts": _require_parts,
    "sample.temperatures": _require_steps,
}


def _choices(config: ConfigDict) -> dict[str, tuple[str, ...]]:
    """What the fields that are names may be."""
    choices: dict[str, tuple[str, ...]] = {
        "data.binarization": ("dynamic", "fixed", "none"),
        "data.crop": ("nvae", "rae"),
        "compare.split": ("test", "valid"),
        "evaluate.feature_net": ("", "inception", "lenet5", "resnet20", "resnet56"),
        "evaluate.fid_reference": ("train", "test"),
        "evaluate.split": ("test", "valid"),
        "export.dtype": ("float32", "float16"),
        "export.format": ("png", "npz", "weights", "state"),
        "export.sampler": tuple(SAMPLERS),
        "ncp.directions.context": CONTEXTS,
        "ncp.formulation": stacks.FORMULATIONS,
        "ncp.select_by": held_out.SELECT_BY,
        "sample.dtype": DTYPES,
        "vae.prior": ("gaussian", "snis", "lars", "vamp"),
        "vae.prior_settings.activation": ACTIVATIONS,
        "vae.model.likelihood": LIKELIHOODS,
        # Its fields come with it, so it is the experiment's file that chooses.
        "vae.model.name": tuple(
            n for n in VAES if VAES[n].keys() < set(config.vae.model)
        ),
        "ncp.discriminator.name": tuple(
            n
            for n in DISCRIMINATORS
            if DISCRIMINATORS[n].keys() < set(config.ncp.discriminator)
        ),
    }
    if "num_mixtures" in config.vae.model:
        choices["vae.model.likelihood"] += ("logistic_mixture",)
    if config.vae.model.name == "rae":
        choices["vae.model.likelihood"] = ("normal",)
        choices["vae.model.kind"] = KINDS
    for section, part in (("vae", "model"), ("ncp", "discriminator")):
        choices[f"{section}.schedule"] = optimizers.SCHEDULES
        choices[f"{section}.optimizer"] = optimizers.OPTIMIZERS
        for field, allowed in (("activation", ACTIVATIONS), ("dtype", DTYPES)):
            if field in config[section][part]:
                choices[f"{section}.{part}.{field}"] = allowed
    return choices
