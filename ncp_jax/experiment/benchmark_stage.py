"""The stage that times: samplers, stage 2 and the training loop, on noise for data."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.benchmark import (
    alone,
    sampling,
    scaling,
    slopes,
    stage_two,
    timing,
    training_loop,
)
from ncp_jax.benchmark.chains import compared
from ncp_jax.benchmark.roofline import Machine
from ncp_jax.experiment.sample_stage import in_dtype
from ncp_jax.experiment.setup import signal
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.models import stacks
from ncp_jax.models.base import FrozenVAE, LatentVariableModel
from ncp_jax.pages import benchmark_page
from ncp_jax.priors import directions, feature_directions, generation, ncp_prior
from ncp_jax.training.ncp import ncp_state
from ncp_jax.training.ncp import signal as signal_training

Array = jax.Array
NAME = "benchmark"  # of benchmark.json and benchmark.html


def benchmark(experiment: Experiment, environment: Mapping[str, Any]) -> None:
    """Times the parts that are asked for; writes benchmark.json and benchmark.html.

    Weights are those of the workdir where both stages are done, and random elsewhere:
    seconds do not depend on them, effective sample sizes do.
    """
    settings, parts = experiment.config.benchmark, _PARTS
    results: dict[str, Any] = {
        "environment": dict(environment) | {"date": time.strftime("%Y-%m-%d")},
        "data": experiment.config.data.name,
        "settings": settings.to_dict(),
    }
    for name in settings.parts:
        print(f"benchmark: {name}")
        results[name] = parts[name](experiment)
        experiment.workdir.write_json(f"{NAME}.json", results)
    path = experiment.path / f"{NAME}.html"
    path.write_text(benchmark_page.html(results), encoding="utf-8")
    print(f"benchmark: {path}")


def _training(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.config.vae
    task, state = experiment.vae_task()
    timings = training_loop.training_loop(
        task,
        state,
        num_steps=experiment.config.benchmark.num_steps,
        num_repeats=experiment.config.benchmark.num_repeats,
        steps_per_dispatch=settings.steps_per_dispatch,
        steps_per_eval=settings.steps_per_eval,
    )
    return _told({}, [timings])


def _samplers(experiment: Experiment) -> dict[str, Any]:
    settings, key = experiment.config.benchmark, experiment.key("benchmark")
    dtype = experiment.config.sample.dtype
    ncp, weights = _prior(experiment)
    machine = _machine(dtype)
    timed = sampling.Settings(
        num_images=settings.num_images,
        num_proposals=settings.num_proposals,
        num_steps=settings.num_langevin_steps,
        step_size=experiment.config.sample.langevin_step_size,
        **_repeats(experiment),
        max_bytes=settings.max_gigabytes * 1e9,
        memory_bytes=experiment.config.sample.memory_mib * 2**20,
    )
    rows = sampling.rows(in_dtype(ncp, dtype), key, timed, machine)
    found: dict[str, Any] = {
        "weights": weights,
        "dtype": dtype,
        **_limits(machine),
    }
    found = _told(found, rows)
    found["recommendations"] = sampling.recommendations(found["rows"])
    found["bfloat16"] = []
    if hasattr(ncp.discriminator, "dtype"):  # one of a user's own may have none
        found["bfloat16"] = sampling.bfloat16_effect(
            ncp, rng.stream(key, "bfloat16"), found["rows"], settings.max_seconds
        )
    for line in benchmark_page.advice(found):
        print(line)
    return found


def _alone(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.config.benchmark
    num_chains, (ncp, _) = max(settings.num_images), _prior(experiment)
    stack = _first_stack(ncp)
    rows = alone.rows(
        experiment.discriminator,
        stack.latent_shape,
        rng.stream(experiment.key("benchmark"), "alone"),
        num_chains=num_chains,
        num_proposals=settings.num_proposals,
        num_steps=settings.num_langevin_steps,
        chunk_size=lambda m: generation.fitting_chunk(ncp, num_chains, m),
        step_size=experiment.config.sample.langevin_step_size,
        **_repeats(experiment),
    )
    found = {"latent_shape": list(stack.latent_shape), "num_chains": num_chains}
    return _told(found, rows)


def _chains(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.config.benchmark
    num_chains = max(settings.num_images)
    latent_shape = _first_stack(_prior(experiment)[0]).latent_shape
    rows = compared.rows(
        experiment.discriminator,
        latent_shape,
        rng.stream(experiment.key("benchmark"), "chains"),
        num_chains=num_chains,
        num_steps=settings.num_chain_steps,
        num_calls=settings.num_chain_calls,
        step_size=experiment.config.sample.mala_step_size,
        max_seconds=settings.max_seconds,
    )
    return _told({"latent_shape": list(latent_shape), "num_chains": num_chains}, rows)


def _stage_two(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.config.benchmark
    stack = _first_stack(_prior(experiment)[0])
    key = rng.stream(experiment.key("benchmark"), "stage two")
    rows = stage_two.rows(_update(experiment, stack, key), settings.num_groups)
    shapes = {
        "latent_shape": list(stack.latent_shape),
        "context_shape": list(stack.context_shape),
    }
    return _told(shapes, rows)


def _scaling(experiment: Experiment) -> dict[str, Any]:
    settings, (ncp, _) = experiment.config.benchmark, _prior(experiment)
    stack, network = _first_stack(ncp), experiment.discriminator
    dtype = jnp.dtype(getattr(network, "dtype", jnp.float32)).name
    num_devices = stage_two.powers_of_two(jax.local_device_count())
    machine = _machine(dtype)
    key = rng.stream(experiment.key("benchmark"), "scaling")
    timed = scaling.Settings(
        num_proposals=settings.num_proposals,
        num_steps=settings.num_langevin_steps,
        num_chains=settings.num_chains,
        latent_dims=settings.latent_dims,
        num_groups=settings.num_groups,
        num_devices=num_devices,
        chains=max(settings.num_images),
        step_size=experiment.config.sample.langevin_step_size,
        **_repeats(experiment),
    )
    of_samplers = scaling.rows(
        network,
        stack.latent_shape,
        rng.stream(key, "samplers"),
        timed,
        machine,
        cache(partial(generation.fitting_chunk, ncp)),
    )
    update = _update(experiment, stack, rng.stream(key, "stage two"))
    most = max(settings.num_groups)
    of_stage_two = stage_two.on_devices(update, most, num_devices)
    rows = itertools.chain(of_samplers, map(_against_devices, of_stage_two))
    shape = {"latent_shape": list(stack.latent_shape), "dtype": dtype}
    found = _told(shape | _limits(machine), slopes.with_slopes(rows))
    return found | {"curves": slopes.curves(found["rows"])}


def _against_devices(row: dict[str, Any]) -> dict[str, Any]:
    point = {"curve": "devices", "sampler": "stage_two", "size": row["num_devices"]}
    return point | row


def _update(
    experiment: Experiment, stack: stacks.Stack, key: Array
) -> stage_two.Update:
    return stage_two.Update(
        experiment.discriminator,
        experiment.ncp_optimizer,
        stack,
        key,
        experiment.config.benchmark.batch_size,
        **_repeats(experiment),
    )


def _repeats(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.config.benchmark
    return {"num_repeats": settings.num_calls, "max_seconds": settings.max_seconds}


def _machine(dtype: str) -> Machine:
    return Machine(timing.matmul_ceiling(dtype), timing.copy_bandwidth())


def _limits(machine: Machine) -> dict[str, float]:
    return {
        "ceiling_flops_per_second": machine.ceiling,
        "bandwidth_bytes_per_second": machine.bandwidth,
    }


_PARTS: dict[str, Callable[[Experiment], dict[str, Any]]] = {
    "training": _training,
    "samplers": _samplers,
    "alone": _alone,
    "chains": _chains,
    "stage_two": _stage_two,
    "scaling": _scaling,
}


def _told(found: dict[str, Any], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Prints rows as they come and adds them."""
    found["rows"] = []
    for row in rows:
        print(benchmark_page.line(row), flush=True)
        found["rows"].append(row)
    return found


def _first_stack(ncp: ncp_prior.NCPPrior) -> stacks.Stack:
    """Of the blocks that discriminators read."""
    blocks = [ncp.vae.blocks[b] for b in ncp.reweighted_blocks]
    return stacks.stack_blocks(blocks)[0]


def _prior(experiment: Experiment) -> tuple[ncp_prior.NCPPrior, str]:
    """The NCP of the workdir, or one of random weights, and which of them it is."""
    if experiment.is_trained:
        return experiment.load_ncp(), "trained"
    key = rng.stream(experiment.key("benchmark"), "weights")
    vae, network = _untrained(experiment), experiment.discriminator
    init_key = rng.stream(experiment.key("ncp"), "init")
    init = jax.jit(partial(ncp_state.init_params, network))
    params = alone.shaken(init(signal_training.trained(vae), init_key), key)
    return signal_training.prior(vae, network, params), "random"


def _untrained(experiment: Experiment) -> LatentVariableModel:
    """The VAE of random weights, in coordinates of random directions if in any."""
    vae = FrozenVAE(experiment.vae_module, experiment.initial_variables())
    settings = signal.settings_of(experiment.config)
    if settings is None:
        return vae
    key = rng.stream(experiment.key("benchmark"), "directions")
    found = directions.random_directions(vae, key, settings.cap)
    if settings.context == "features":
        basis, shift = feature_directions.no_features(vae, settings.context_size)
        found = dataclasses.replace(found, feature_basis=basis, feature_shift=shift)
    return signal_training.view(vae, found, settings)
