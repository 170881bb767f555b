"""`config.py`: defaults, variants, and settings that are refused by name."""

import functools
import re

import pytest

from configs import mnist_mlp
from ncp_jax import nested
from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files, presets, validation
from ncp_jax.training import optimizers


def flat(config):
    return dict(nested.flatten(config.to_dict()))


ALL = [(vae, d) for vae in config_lib.VAES for d in config_lib.DISCRIMINATORS]


@pytest.mark.parametrize("names", ALL)
def test_defaults_and_smoke_are_valid(names):
    validation.validate(config_lib.default(*names))
    validation.validate(presets.variant(config_lib.default(*names), "smoke"))


@pytest.mark.parametrize("names", ALL)
def test_smoke_shrinks_and_adds_nothing(names):
    full, small = (
        flat(config_lib.default(*names)),
        flat(presets.variant(config_lib.default(*names), "smoke")),
    )
    assert full.keys() == small.keys()
    num_steps = 8 if names[0] == "nvae" else 60
    assert small["vae.num_steps"] == small["ncp.num_steps"] == num_steps
    numbers = {n: v for n, v in full.items() if type(v) is int and n[:8] != "evaluate"}
    bounds = ("compare.max_draws", "compare.max_steps")  # 0 is none
    assert all(small[n] <= v for n, v in numbers.items() if n not in bounds)
    assert all(full[name] == 0 < small[name] for name in bounds)
    assert small["ncp.directions.num_encodings"] == 1


@pytest.mark.parametrize("variant", ["ranking", "deep"])
def test_variants_of_stage_2_share_the_papers_stage_1(variant):
    """So that they can be trained on its frozen VAE."""
    paper, ours = mnist_mlp.get_config(), mnist_mlp.get_config(variant)
    validation.validate(ours)
    assert config_lib.differences(paper.to_dict(), ours.to_dict(), ("ncp",))
    sections = ("seed", "data", "vae", "evaluate")
    assert not config_lib.differences(paper.to_dict(), ours.to_dict(), sections)


def test_a_smoke_run_of_nvae_is_small_and_keeps_its_scales():
    config = config_lib.default(vae="nvae", discriminator="residual")
    config.vae.model.update(groups_per_scale=(1, 4, 6), num_flows=2)
    config.vae.warmup_steps = 500
    small = presets.variant(config, "smoke")
    assert small.vae.model.groups_per_scale == (1, 2, 2)
    assert (small.vae.model.num_flows, small.vae.model.encoder_channels) == (1, 4)
    assert small.vae.warmup_steps < small.vae.num_steps
    assert small.ncp.discriminator.blocks == "AB"
    assert small.evaluate.num_importance_samples <= 4


def test_a_model_brings_its_own_settings():
    config = config_lib.default(vae="nvae", discriminator="residual")
    assert config.vae.model.name == "nvae" and "latent_dim" not in config.vae.model
    assert config.ncp.discriminator.to_dict() == {
        "name": "residual",
        **config_lib.DISCRIMINATORS["residual"],
    }
    with pytest.raises((KeyError, AttributeError), match="latent_dim"):
        config.vae.model.latent_dim = 3
    config.vae.model.groups_per_scale = (2, 3)  # of this config, not of the defaults
    assert config_lib.default(vae="nvae").vae.model.groups_per_scale == (5, 10)


def test_the_empty_variant_changes_nothing_and_others_are_refused():
    assert flat(presets.variant(config_lib.default(), "")) == flat(config_lib.default())
    with pytest.raises(InputError, match=r"'tiny'.*':smoke'"):
        presets.variant(config_lib.default(), "tiny")
    for name, others in [
        ("mnist_mlp:rankng", "':ranking', ':deep', ':smoke'"),
        ("mnist_nvae:cpu_residul", "':cpu_residual', ':smoke_residual', ':smoke'"),
        ("mnist_convhvae:gpu", "':cpu', ':smoke'"),
        ("celeba64_nvae:residul", "':residual', ':smoke_residual', ':smoke'"),
    ]:
        with pytest.raises(InputError, match=others):
            config_files.load(*name.split(":"))


def test_a_misspelt_field_in_an_experiment_is_an_error():
    with pytest.raises((KeyError, AttributeError), match="numsteps"):
        config_lib.default().vae.update(numsteps=3)
    with pytest.raises((KeyError, AttributeError), match="numsteps"):
        config_lib.default().vae.numsteps = 3


MAY_BE_ZERO = {
    "seed",
    "compare.directions.context_size",
    "compare.max_draws",
    "compare.max_examples",
    "compare.max_steps",
    "compare.num_mmd_samples",
    "evaluate.audit_num_draws",
    "evaluate.audit_num_images",
    "evaluate.num_mmd_samples",
    "evaluate.max_examples",
    "sample.chunk_size",
    "sample.memory_mib",
    "sample.num_readjust_iterations",
    "vae.warmup_steps",
    "vaebm.warmup_steps",
    "vae.model.padding",
    "vae.model.num_flows",
    "ncp.warmup_steps",
    "ncp.patience",
    "ncp.seed",
    "ncp.directions.cap",
    "ncp.directions.context_size",
}
RATES_THAT_MAY_BE_ZERO = {
    "ncp.ranking_weight",
    "compare.directions.floor",
    "ncp.directions.floor",
    "evaluate.max_log_z_stderr",
    "sample.temperature",
    "vae.kl_warmup_fraction",
    "vae.kl_constant_fraction",
    "vae.model.embedding_weight",
    "vae.model.input_noise",
    "vae.model.regularizer_weight",
    "vae.penalty_weight",
    "vae.initial_penalty_weight",
    "vaebm.ema_decay",
    "vaebm.energy_penalty",
    "vaebm.noise_std",
    "vaebm.replay_share",
    "vaebm.spectral_penalty",
    *(f"{s}.{n}" for s in ("vae", "ncp") for n in ("weight_decay", "ema_decay")),
    *(f"{s}.final_learning_rate" for s in ("vae", "ncp")),
    *(f"vaebm.{n}_penalty" for n in ("energy", "spectral")),
    *(f"vaebm.{n}" for n in ("ema_decay", "noise_std", "replay_share")),
}


def numbers_of(kind):
    """{name of a field of this kind: (vae, discriminator) that have it}."""
    return {
        name: names
        for names in ALL
        for name, value in flat(config_lib.default(*names)).items()
        if type(value) is kind
    }


def test_the_fields_that_may_be_zero_are_these():
    assert set(validation.MAY_BE_ZERO) == MAY_BE_ZERO | RATES_THAT_MAY_BE_ZERO
    assert numbers_of(int).keys() >= MAY_BE_ZERO
    assert numbers_of(float).keys() >= RATES_THAT_MAY_BE_ZERO


@pytest.mark.parametrize(("name", "names"), numbers_of(int).items())
def test_negative_sizes_are_refused_and_zero_only_where_it_means_something(name, names):
    config = config_lib.default(*names)
    config.update_from_flattened_dict({name: -1})
    with pytest.raises(InputError, match=rf"config\.{re.escape(name)} must be .*-1"):
        validation.validate(config)
    config.update_from_flattened_dict({name: 0})
    if name in MAY_BE_ZERO:
        validation.validate(config)
    else:
        with pytest.raises(InputError, match=rf"config\.{name} must be .*positive"):
            validation.validate(config)


@pytest.mark.parametrize("binarization", ["none", "fixed"])
def test_repeats_need_other_noise_each_time(binarization):
    config = config_lib.default()
    config.evaluate.num_binarizations = 3
    validation.validate(config)
    config.data.binarization = binarization
    with pytest.raises(InputError, match=f"num_binarizations .* is '{binarization}'"):
        validation.validate(config)


@pytest.mark.parametrize(("name", "names"), numbers_of(float).items())
def test_negative_rates_are_refused_and_zero_only_where_it_means_something(name, names):
    config = config_lib.default(*names)
    config.update_from_flattened_dict({name: -1.0})
    with pytest.raises(InputError, match=rf"config\.{re.escape(name)} must be .*-1"):
        validation.validate(config)
    config.update_from_flattened_dict({name: 0.0})
    if name in RATES_THAT_MAY_BE_ZERO:
        validation.validate(config)
    else:
        with pytest.raises(InputError, match=rf"config\.{name} must be .*positive"):
            validation.validate(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vae.learning_rate", float("nan"), "finite and positive"),
        ("vae.learning_rate", float("inf"), "finite and positive"),
        ("ncp.weight_decay", -0.1, "zero or more"),
        ("ncp.ema_decay", 1.0, "below 1"),
        ("ncp.negative_weight", 0.5, "1 (the paper's loss) or more, got 0.5"),
        ("ncp.select_by", "accuracy", "('loss', 'gain'), got 'accuracy'"),
        ("ncp.weight_decays", (0.1, -1.0), "numbers from 0 on"),
        ("sample.temperature", -1.0, "zero or more"),
        ("seed", 2**32, "below 2**32"),
        ("vae.model.hidden_dims", (300, 0), "positive integers"),
        ("vae.model.hidden_dims", (300, "x"), "positive integers"),
        ("data.shape", (8, -8, 1), "positive integers"),
        ("vae.schedule", "linear", "('constant', 'cosine', 'step'), got 'linear'"),
        ("vae.model.activation", "than", "tanh"),
        ("ncp.discriminator.activation", "than", "tanh"),
        ("vae.model.likelihood", "poisson", "('bernoulli', 'normal')"),
        ("vae.model.likelihood", "logistic_mixture", "('bernoulli', 'normal')"),
        ("vae.model.name", "nvae", "one of ('mlp',)"),  # which has other settings
        ("ncp.discriminator.name", "residual", "one of ('mlp',)"),
        ("vae.optimizer", "sgd", "('adam', 'adamax')"),
        ("ncp.optimizer", "sgd", "('adam', 'adamax')"),
        ("ncp.formulation", "pmap", "('auto', 'vmap', 'map')"),
        ("data.crop", "none", "('nvae', 'rae')"),
        ("data.num_bits", 9, "at most 8"),
        ("sample.groups", (0, -1), "integers from 0 on"),
        ("sample.temperatures", (0.7, 0.0), "positive numbers"),
        ("evaluate.feature_net", "vgg", "'inception', 'lenet5'"),
        ("evaluate.feature_net", "lenet5", "go together"),
        ("evaluate.feature_weights", "x.npz", "or neither"),
        ("evaluate.fid_reference", "valid", "('train', 'test')"),
        ("evaluate.fid_samplers", ("base",), "some of ('sir',"),
        ("evaluate.fid_samplers", ("mala",), "['mala'], which are not among"),
        ("evaluate.num_mmd_samples", 2, "3 or more, or 0 for no MMD"),
        ("evaluate.audit_num_images", 19, "20 or more, or 0 for none"),
        ("evaluate.audit_num_draws", 20, "more than the decoded encodings"),
        ("evaluate.audit_groups", (-1,), "integers from 0 on"),
        ("evaluate.audit_samplers", ("mala",), "['mala'], which are not among"),
        ("sample.groups", (0.5,), "integers from 0 on"),
        ("data.binarization", "static", "('dynamic', 'fixed', 'none')"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(name, value, message):
    config = config_lib.default()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(InputError) as refused:
        validation.validate(config)
    assert f"config.{name}" in str(refused.value) and message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vae.model.name", "mlp", "one of ('nvae',)"),
        ("vae.model.likelihood", "poisson", "'logistic_mixture')"),
        ("vae.model.dtype", "float16", "('float32', 'bfloat16')"),
        ("vae.model.groups_per_scale", (), "positive integers"),
        ("vae.model.groups_per_scale", (3, 0), "positive integers"),
        ("ncp.discriminator.dtype", "float64", "('float32', 'bfloat16')"),
    ],
)
def test_bad_values_of_the_large_models_are_refused(name, value, message):
    config = config_lib.default(vae="nvae", discriminator="residual")
    config.update_from_flattened_dict({name: value})
    with pytest.raises(InputError) as refused:
        validation.validate(config)
    assert f"config.{name}" in str(refused.value) and message in str(refused.value)


def test_every_allowed_name_exists():
    import jax

    assert all(callable(getattr(jax.nn, name)) for name in validation.ACTIVATIONS)
    allowed = {
        "vae.schedule": optimizers.SCHEDULES,
        "vae.optimizer": optimizers.OPTIMIZERS,
        "vae.model.likelihood": ("bernoulli", "normal", "logistic_mixture"),
        "vae.model.dtype": validation.DTYPES,
        "sample.groups": ((), (0,), (3, 1)),
        "data.num_bits": (1, 5, 8),
    }
    for name, values in allowed.items():
        for value in values:
            config = config_lib.default(vae="nvae")
            config.update_from_flattened_dict({name: value})
            validation.validate(config)


def test_differences_look_only_where_asked_and_where_it_matters():
    old = config_lib.as_json(config_lib.default())
    config = config_lib.default()
    config.seed, config.vae.num_steps, config.ncp.num_steps = 1, 3, 4
    config.data.dir, config.vae.model.hidden_dims = "elsewhere", (5,)
    config.data.cache_dir, config.data.on_device = "there", False
    new = config_lib.as_json(config)
    assert config_lib.differences(old, old, ("seed", "data", "vae", "ncp")) == []
    assert config_lib.differences(old, new, ("seed", "data", "vae")) == [
        "config.seed: 0 -> 1",
        "config.vae.model.hidden_dims: [300, 300] -> [5]",
        "config.vae.num_steps: 10000 -> 3",
    ]
    del old["seed"]
    assert config_lib.differences(old, new, ("seed",)) == ["config.seed: absent -> 1"]


def test_a_fingerprint_depends_on_its_sections_alone():
    old, config = config_lib.as_json(config_lib.default()), config_lib.default()
    config.ncp.num_steps, config.data.dir = 4, "elsewhere"
    config.data.cache_dir, config.data.on_device = "there", False
    new = config_lib.as_json(config)
    vae, ncp = ("seed", "data", "vae"), ("seed", "data", "vae", "ncp")
    assert config_lib.fingerprint(old, vae) == config_lib.fingerprint(new, vae)
    assert config_lib.fingerprint(old, ncp) != config_lib.fingerprint(new, ncp)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("sample.samplers", ("sir", "gibbs"), "must hold some of .*'sirmala'"),
        ("sample.samplers", ("sir", "sir"), "each once"),
        ("sample.langevin_step_sizes", (0.1, 0.0), "positive numbers"),
        ("benchmark.parts", ("samplers", "all"), "must hold some of .*'stage_two'"),
        ("benchmark.parts", (), "must hold some of"),
        ("benchmark.num_chains", (1, 0), "must hold positive integers"),
        ("benchmark.latent_dims", (), "must hold positive integers"),
    ],
)
def test_lists_hold_what_there_is(name, values, message):
    config = config_lib.default()
    config.update_from_flattened_dict({name: values})
    with pytest.raises(InputError, match=message):
        validation.validate(config)


def test_a_run_from_before_a_setting_goes_on_where_the_setting_changes_nothing():
    new = config_lib.as_json(config_lib.default())
    old = config_lib.as_json(config_lib.default())
    for name in config_lib.ADDED:
        *sections, field = name.split(".")
        del functools.reduce(lambda part, key: part[key], sections, old)[field]
    sections = ("seed", "data", "vae", "ncp")
    assert config_lib.differences(old, new, sections) == []
    assert config_lib.fingerprint(old, sections) == config_lib.fingerprint(
        new, sections
    )
    new["ncp"]["select_by"] = "gain"
    assert config_lib.differences(old, new, sections) == [
        "config.ncp.select_by: loss -> gain"
    ]
    assert config_lib.fingerprint(old, sections) != config_lib.fingerprint(
        new, sections
    )
