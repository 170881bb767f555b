"""How one group's sampler grows in cost: with M, chains, dimension, groups, devices.

As in `alone`, the base prior is N(0, I), there is no context, and weights are random.
On each curve one size grows; the others stay at

- B chains, as in `alone`; the dimension of the config's z; one group; one device;
- proposals and steps: the last but one of what is timed of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from math import inf
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax import parallel, rng
from ncp_jax.benchmark import alone, arithmetic, roofline, sampling, timing
from ncp_jax.benchmark.roofline import Machine
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.group_samplers import SIR, Langevin
from ncp_jax.priors.ncp_prior import Target

Array = jax.Array
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
      num_proposals: values of M.
      num_steps: values of T.
      num_chains: values of B.
      latent_dims: values of D: of the last axis of z, which for maps is the channels.
      num_groups: values of K, drawn one after another.
      num_devices: among which chains are split.
      chains: B of the other curves.
      step_size: lambda.
      num_repeats: calls of each after the first.
      max_seconds: a call that would take longer at the FLOP/s of the row before is
        not made.
    """

    num_proposals: Sequence[int]
    num_steps: Sequence[int]
    num_chains: Sequence[int]
    latent_dims: Sequence[int]
    num_groups: Sequence[int]
    num_devices: Sequence[int]
    chains: int
    step_size: float
    num_repeats: int
    max_seconds: float


@dataclasses.dataclass(frozen=True)
class _Case:
    """One call."""

    num_chains: int
    latent_shape: tuple[int, ...]
    amount: int  # M or T
    num_groups: int = 1
    num_devices: int = 1


def rows(
    network: nn.Module,
    latent_shape: tuple[int, ...],
    key: Array,
    settings: Settings,
    machine: Machine,
    chunk_size: Callable[[int, int], int],
) -> Iterator[Row]:
    """Times SIR and Langevin dynamics along every curve.

    Args:
      network: the discriminator, which reads z of any last axis.
      latent_shape: of z.
      key: PRNG key; consumed here.
      settings: what is timed.
      machine: what there is at best.
      chunk_size: of B and M, how many proposals at a time; the same for every D.

    Yields:
      A row per curve, sampler and size, as JSON values: seconds, arithmetic, and where
      they lie under the roof.
    """
    one = _Group(network, rng.stream(key, "weights"))
    chains_key = rng.stream(key, "chains")
    time = cache(  # curves have calls in common
        lambda draw, case: _time(one, draw, case, chains_key, settings)
    )
    for sampler in ("sir", "langevin"):
        rate = inf  # FLOP/s of the row before
        for curve, cases in _curves(sampler, latent_shape, settings).items():
            for size, case in cases:
                row: Row = {"curve": curve, "sampler": sampler, "size": size}
                row |= dataclasses.asdict(case)
                share = case.num_chains // case.num_devices
                draw: Any = Langevin(settings.step_size, case.amount)
                if sampler == "sir":
                    draw = SIR(case.amount, chunk_size(share, case.amount))
                flops = one.flops(draw, case)
                if flops / rate > settings.max_seconds:
                    yield row | {"skipped": f"some {flops / rate:,.0f} s"}
                    continue
                row |= time(draw, case)
                num_bytes = one.num_bytes(draw, case)
                row |= roofline.placed(flops, num_bytes, row["seconds"], machine)
                rate = row["flops_per_second"]
                yield row


def _curves(
    sampler: str, latent_shape: tuple[int, ...], settings: Settings
) -> dict[str, list[tuple[int, _Case]]]:
    """Per curve, what each of its sizes stands for."""
    is_sir = sampler == "sir"
    amounts = sorted(set(settings.num_proposals if is_sir else settings.num_steps))
    plain = _Case(settings.chains, latent_shape, amounts[-2:][0])
    most = max(settings.num_devices)
    shared = -(-sorted(settings.num_chains)[-2:][0] // most) * most
    change = partial(dataclasses.replace, plain)
    dims = ((n, (*latent_shape[:-1], n)) for n in settings.latent_dims)
    found = {
        "proposals" if is_sir else "steps": [(n, change(amount=n)) for n in amounts],
        "chains": [(n, change(num_chains=n)) for n in settings.num_chains],
        "dimension": [(n, change(latent_shape=shape)) for n, shape in dims],
        "groups": [(n, change(num_groups=n)) for n in settings.num_groups],
        "devices": [
            (n, change(num_chains=shared, num_devices=n)) for n in settings.num_devices
        ],
    }
    return {
        curve: sorted(dict(cases).items(), key=lambda each: each[0])
        for curve, cases in found.items()
    }


class _Group:
    """The discriminator of one group: its weights, its arithmetic, what it moves."""

    def __init__(self, network: nn.Module, key: Array):
        self.network = network
        self._key = key
        self.variables = cache(self._variables)  # of a shape of z
        self._of_pass = cache(self._pass_bytes)

    def flops(self, draw: Any, case: _Case) -> int:
        """Of one call."""
        z = jax.ShapeDtypeStruct((1, *case.latent_shape), jnp.float32)
        log_r = partial(alone.log_ratio, self.network)
        of_one = arithmetic.count_flops(log_r, self.variables(case.latent_shape), z)
        return case.num_chains * case.num_groups * sampling.evaluations(draw) * of_one

    def num_bytes(self, draw: Any, case: _Case) -> float:
        """Of one call, all devices together."""
        share = case.num_chains // case.num_devices
        of_group = sum(
            each.times * self._of_pass(case.latent_shape, share, each.num_proposals)
            for each in roofline.passes(draw)
        )
        return case.num_devices * case.num_groups * of_group

    def _variables(self, latent_shape: tuple[int, ...]) -> Any:
        return alone.random_variables(self.network, latent_shape, self._key)

    def _pass_bytes(
        self, latent_shape: tuple[int, ...], num_chains: int, num_proposals: int
    ) -> float:
        params, no_context = self.variables(latent_shape)["params"], (0,)
        return roofline.pass_bytes(
            self.network, params, latent_shape, no_context, num_chains, num_proposals
        )


def _time(one: _Group, draw: Any, case: _Case, key: Array, settings: Settings) -> Row:
    mesh = parallel.mesh_of(jax.local_devices()[: case.num_devices])
    stacked = jax.tree.map(
        lambda leaf: jnp.repeat(leaf[None], case.num_groups, axis=0),
        one.variables(case.latent_shape),
    )
    took, _ = timing.time_compiled(
        partial(_draw_groups, one.network, draw, case.latent_shape, mesh),
        parallel.replicate(mesh, stacked),
        jax.random.split(key, case.num_chains),
        num_repeats=settings.num_repeats,
        max_seconds=settings.max_seconds,
    )
    return took.as_json()


def _draw_groups(
    network: nn.Module,
    draw: Any,
    latent_shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
    stacked: Any,
    keys: Array,
) -> Any:
    """z [B, K, *latent_shape] and the sampler's info, chains leading."""

    def share(stacked: Any, keys: Array) -> Any:
        shape = (len(keys), *latent_shape)
        base = Normal(jnp.zeros(shape), jnp.ones(shape))

        def step(k: Array, variables: Any) -> tuple[Array, Any]:
            target = Target(base, partial(alone.log_ratio, network, variables), k)
            return k + 1, draw(rng.at_step(keys, k), target)

        _, (z, info) = jax.lax.scan(step, jnp.int32(0), stacked)
        return z.swapaxes(0, 1), jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), info)

    with jax.default_matmul_precision("float32"):
        return parallel.over_device_chains(mesh, share, stacked, keys)
