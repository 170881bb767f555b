"""What a run would take at the least, counted before anything of it is made.

Sizes beyond reason would hang, or end in the words of whatever gave out first. Counted
is only what cannot be done without, so that nothing is refused that could run.
"""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import architectures, schema, signal
from ncp_jax.models.base import Block

MAX_LAYERS = 1_000  # of one network; the paper's largest NVAE has about 200
FLOAT_BYTES = 4
MOMENTS = 2  # that Adam and AdaMax keep of every parameter


class Need(NamedTuple):
    """Something that must be in memory at once."""

    what: str
    num_bytes: int
    fields: tuple[str, ...]  # the settings, or sections of them, that it grows with


def check(config: ConfigDict) -> None:
    """Refuses networks of endless depth, and arrays that no memory here could hold.

    Raises:
      InputError: naming what it would take, what there is and the setting to lower.
    """
    _check_layers(config)
    _check_shape(config)
    module = architectures.build_stage_1(
        config.vae, config.data.shape, config.data.num_bits
    )
    for need in _arrays(config, module.blocks):
        check_need(config, need)


def check_parameters(
    config: ConfigDict, section: str, shapes: Any, copies: int
) -> None:
    """Refuses a network whose training no memory here could hold.

    Args:
      config: the settings.
      section: "vae" or "ncp", which trains it.
      shapes: its variables, as `jax.eval_shape` gives them.
      copies: how many groups have one of their own.
    """
    number = copies * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # Weights, their gradients, the optimiser's moments, and averages if asked for.
    times = 2 + MOMENTS + bool(config[section].ema_decay)
    part = "vae.model" if section == "vae" else "ncp.discriminator"
    grows = [part, "data.shape"] if section == "vae" else [part, "vae.model"]
    if section == "vae" and config.vae.prior != "gaussian":
        grows.append("vae.prior_settings")
    what = f"training the {number:,} parameters of config.{part}"
    check_need(config, Need(what, times * number * FLOAT_BYTES, tuple(grows)))


def check_need(config: ConfigDict, need: Need) -> None:
    """Refuses what does not fit into all of the memory that there is.

    Raises:
      InputError: naming what it would take, what there is and the setting to lower.
    """
    available = memory_bytes()
    if need.num_bytes <= available:
        return
    name, value = _largest(config, need.fields)
    raise InputError(
        f"config.{name} = {schema.shown(value)} is too large: {need.what} would take "
        f"{_size(need.num_bytes)}, and there are {_size(available)}"
    )


def memory_bytes() -> int:
    """Returns the memory of all devices or of all machines, whichever is more."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    of_devices = sum(of_device.get("bytes_limit", 0) for of_device in stats)
    of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return jax.process_count() * max(of_devices, of_machine)


def abstract(*shape: int) -> jax.ShapeDtypeStruct:
    """Stands for an array of float32 that is not made."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _arrays(config: ConfigDict, blocks: tuple[Block, ...]) -> Iterator[Need]:
    """What one batch of each stage holds, all devices together."""
    x = math.prod(config.data.shape)
    sizes = [math.prod(block.latent_shape) for block in blocks]
    z = sum(block.num_groups * n for block, n in zip(blocks, sizes, strict=True))
    yield from _of_training(config, x + z)
    yield from _of_learned_prior(config, x + z)
    yield from _of_negatives(config, min(sizes))
    yield from _of_samples(config, x + z)
    yield from _of_benchmark(config, min(sizes))
    evaluate = config.evaluate
    yield _need(
        "the importance samples of one example at a time, z alone",
        min(evaluate.chunk_size, evaluate.num_importance_samples) * z,
        *("evaluate.chunk_size", "vae.model"),
    )
    yield _need(
        "one batch of prior draws for log Z",
        min(evaluate.log_z_batch_size, evaluate.num_log_z_draws) * z,
        *("evaluate.log_z_batch_size", "vae.model"),
    )


def _of_training(config: ConfigDict, of_example: int) -> Iterator[Need]:
    for name in ("vae", "ncp"):
        settings, batch_size = config[name], f"{name}.batch_size"
        yield _need(
            f"one batch of config.{name}, x and z",
            settings.batch_size * of_example,
            *(batch_size, "data.shape", "vae.model"),
        )
        steps = ("steps_per_dispatch", "steps_per_eval", "num_steps")
        most = min(settings[step] for step in steps)
        yield _need(
            f"the numbers of the examples of one dispatch of config.{name}",
            most * settings.batch_size,
            *(f"{name}.steps_per_dispatch", batch_size),
        )


def _of_learned_prior(config: ConfigDict, of_example: int) -> Iterator[Need]:
    settings = config.vae.prior_settings
    draws = {
        "snis": {"num_proposals": of_example},
        "lars": {"num_draws": 1, "num_z_draws": 1},
        "vamp": {"num_components": of_example},
    }
    for name, numbers in draws.get(config.vae.prior, {}).items():
        what = f"what config.vae.prior = {config.vae.prior!r} draws at a time"
        yield _need(what, settings[name] * numbers, f"vae.prior_settings.{name}")


def _of_negatives(config: ConfigDict, of_group: int) -> Iterator[Need]:
    ncp, directions = config.ncp, signal.settings_of(config)
    has_coordinates = directions is not None and not directions.is_whole
    yield _need(
        "the prior draws of one group and batch of config.ncp",
        ncp.batch_size * ncp.num_negatives * (1 if has_coordinates else of_group),
        *("ncp.num_negatives", "ncp.batch_size", "vae.model"),
    )
    if has_coordinates:  # of one batch of examples at the least
        yield _need(
            "the encodings of training examples in signal directions",
            ncp.batch_size * ncp.directions.num_encodings,
            *("ncp.directions.num_encodings", "ncp.batch_size"),
        )


def _of_samples(config: ConfigDict, of_example: int) -> Iterator[Need]:
    sample = config.sample
    chains = min(sample.batch_size, sample.num_images)
    yield _need(
        "the samples of config.sample, x and z",
        sample.num_images * of_example,
        *("sample.num_images", "data.shape", "vae.model"),
    )
    if {"sir", "isir", "sirmala"} & set(sample.samplers):
        yield _need(
            "the weights of one batch of proposals of config.sample",
            chains * sample.num_proposals,
            *("sample.num_proposals", "sample.batch_size"),
        )
    if "langevin" in sample.samplers:
        yield _need(
            "the course of one batch of Langevin chains",
            2 * chains * sample.langevin_num_steps,
            *("sample.langevin_num_steps", "sample.batch_size"),
        )


def _of_benchmark(config: ConfigDict, of_group: int) -> Iterator[Need]:
    settings = config.benchmark
    if "scaling" not in settings.parts:
        return
    yield _need(
        "the z of one group of all chains of config.benchmark",
        max(settings.num_chains) * of_group,
        *("benchmark.num_chains", "vae.model"),
    )
    yield _need(
        "the z of the largest dimension of config.benchmark",
        max(settings.num_images) * max(settings.latent_dims),
        *("benchmark.latent_dims", "benchmark.num_images"),
    )


def _need(what: str, numbers: int, *fields: str) -> Need:
    return Need(what, numbers * FLOAT_BYTES, fields)


def _check_layers(config: ConfigDict) -> None:
    """Refuses networks that would only be built for hours; arithmetic, no network."""
    parts = (("vae", "model"), ("ncp", "discriminator"), ("ncp", "directions"))
    for section, part in parts:
        found = _layers(config[section][part])
        number = sum(found.values())
        if number > MAX_LAYERS:
            field = max(found, key=lambda name: found[name])
            value = config[section][part][field]
            raise InputError(
                f"config.{section}.{part}.{field} = {schema.shown(value)} makes a "
                f"network of {number:,} layers; at most {MAX_LAYERS:,} are built"
            )


def _layers(settings: Mapping[str, Any]) -> dict[str, int]:
    """How many layers, or blocks of layers, a network has of each of its settings."""
    if settings.get("name") == "nvae":
        groups = sum(settings["groups_per_scale"])
        scales = len(settings["groups_per_scale"])
        cells = ("num_encoder_cells", "num_decoder_cells", "num_flows")
        ends = ("num_preprocess_cells", "num_postprocess_cells")
        blocks = settings["num_preprocess_blocks"]
        return {
            "groups_per_scale": groups + scales,
            "num_preprocess_blocks": blocks,
            **{name: groups * settings[name] for name in cells},
            **{name: blocks * settings[name] for name in ends},
        }
    parts = ("hidden_dims", "latent_dims", "blocks", "map_blocks")  # some are words
    found = {name: len(settings[name]) for name in parts if name in settings}
    if "num_doublings" in settings:
        found["num_doublings"] = settings["num_doublings"]
    return found


def _check_shape(config: ConfigDict) -> None:
    """Refuses halvings and examples that leave the integers of any array."""
    model = config.vae.model
    if model.name == "nvae" and model.num_preprocess_blocks > 16:
        raise InputError(
            f"config.vae.model.num_preprocess_blocks = {model.num_preprocess_blocks} "
            "halve a picture more often than the 16 times that 65,536 pixels can be"
        )
    x = math.prod(config.data.shape)
    what = "one example"
    check_need(config, Need(what, x * FLOAT_BYTES, ("data.shape",)))


def _largest(config: ConfigDict, fields: tuple[str, ...]) -> tuple[str, Any]:
    """The setting, within these or their sections, that holds the largest number."""
    found: dict[str, Any] = {}
    for name, value in schema.fields(config).items():
        if any(name == field or name.startswith(f"{field}.") for field in fields):
            found[name] = value

    def size(name: str) -> float:
        value = found[name]
        numbers = value if isinstance(value, tuple) else (value,)
        is_text = any(isinstance(n, str | bool) for n in numbers)
        return 0.0 if is_text else math.prod(float(n) for n in numbers)

    name = max(found, key=size)
    return name, found[name]


def _size(num_bytes: int) -> str:
    gigabytes = num_bytes / 1e9
    if not 1 <= gigabytes < 1e9:
        return f"{num_bytes:,.4g} bytes"
    return f"{gigabytes:,.0f} GB" if gigabytes >= 100 else f"{gigabytes:.3g} GB"
