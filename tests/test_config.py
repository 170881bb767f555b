"""`config.py`: defaults, variants, and settings that are refused by name."""

import re

import pytest

from ncp_jax import config as config_lib
from ncp_jax import optimizers
from ncp_jax.errors import InputError


def flat(config):
    return dict(config_lib.flatten(config.to_dict()))


def test_defaults_and_smoke_are_valid():
    config_lib.validate(config_lib.default())
    config_lib.validate(config_lib.variant(config_lib.default(), "smoke"))


def test_smoke_shrinks_and_adds_nothing():
    full, small = (
        flat(config_lib.default()),
        flat(config_lib.variant(config_lib.default(), "smoke")),
    )
    assert full.keys() == small.keys()
    assert small["vae.num_steps"] == small["ncp.num_steps"] == 60
    numbers = {n: v for n, v in full.items() if type(v) is int and n[:8] != "evaluate"}
    assert all(small[name] <= value for name, value in numbers.items())


def test_the_empty_variant_changes_nothing_and_others_are_refused():
    assert flat(config_lib.variant(config_lib.default(), "")) == flat(
        config_lib.default()
    )
    with pytest.raises(InputError, match=r"'tiny'.*':smoke'"):
        config_lib.variant(config_lib.default(), "tiny")


def test_a_misspelt_field_in_an_experiment_is_an_error():
    with pytest.raises((KeyError, AttributeError), match="numsteps"):
        config_lib.default().vae.update(numsteps=3)
    with pytest.raises((KeyError, AttributeError), match="numsteps"):
        config_lib.default().vae.numsteps = 3


SIZES = [
    name
    for name, value in config_lib.flatten(config_lib.default().to_dict())
    if type(value) is int and name.rpartition(".")[2] != "warmup_steps"
]


@pytest.mark.parametrize("name", SIZES)
def test_negative_sizes_are_refused_and_zero_only_where_it_means_something(name):
    config = config_lib.default()
    config.update_from_flattened_dict({name: -1})
    with pytest.raises(InputError, match=rf"config\.{re.escape(name)} must be .*-1"):
        config_lib.validate(config)
    config.update_from_flattened_dict({name: 0})
    if name in ("seed", "evaluate.max_examples", "vae.kl_warmup_steps"):
        config_lib.validate(config)
    else:
        with pytest.raises(InputError, match=rf"config\.{name} must be .*positive"):
            config_lib.validate(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vae.learning_rate", float("nan"), "finite and positive"),
        ("vae.learning_rate", float("inf"), "finite and positive"),
        ("ncp.weight_decay", -0.1, "zero or more"),
        ("ncp.ema_decay", 1.0, "below 1"),
        ("sample.temperature", -1.0, "zero or more"),
        ("seed", 2**32, "below 2**32"),
        ("vae.model.hidden_dims", (300, 0), "positive integers"),
        ("vae.model.hidden_dims", (300, "x"), "positive integers"),
        ("data.shape", (8, -8, 1), "positive integers"),
        ("vae.schedule", "linear", "('constant', 'cosine', 'step'), got 'linear'"),
        ("vae.model.activation", "than", "tanh"),
        ("ncp.discriminator.activation", "than", "tanh"),
        ("vae.model.likelihood", "poisson", "('bernoulli', 'normal')"),
        ("data.binarization", "static", "('dynamic', 'fixed', 'none')"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(name, value, message):
    config = config_lib.default()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(InputError) as refused:
        config_lib.validate(config)
    assert f"config.{name}" in str(refused.value) and message in str(refused.value)


def test_every_allowed_name_exists():
    import jax

    assert all(callable(getattr(jax.nn, name)) for name in config_lib.ACTIVATIONS)
    for name in optimizers.SCHEDULES:
        config = config_lib.default()
        config.vae.schedule = name
        config_lib.validate(config)


def test_differences_look_only_where_asked_and_where_it_matters():
    old = config_lib.as_json(config_lib.default())
    config = config_lib.default()
    config.seed, config.vae.num_steps, config.ncp.num_steps = 1, 3, 4
    config.data.dir, config.vae.model.hidden_dims = "elsewhere", (5,)
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
    new = config_lib.as_json(config)
    vae, ncp = ("seed", "data", "vae"), ("seed", "data", "vae", "ncp")
    assert config_lib.fingerprint(old, vae) == config_lib.fingerprint(new, vae)
    assert config_lib.fingerprint(old, ncp) != config_lib.fingerprint(new, ncp)
