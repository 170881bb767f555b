"""How one group's sampler grows in cost: with M, chains, dimension, groups, devices.

As in `alone`, the base prior is N(0, I), there is no context, and weights are random.
On each curve one size grows; the others stay at

- B chains, as in `alone`; the dimension of the config's z; one group; one device;
- proposals and steps: the last but one of what is timed of them.

`slope` is that of log seconds against log size: 1 where the cost is linear, 0 where it
does not depend on the size.  Against devices, which share the same chains, -1 is all
that can be had.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from math import inf
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
    init_key, key = (rng.stream(key, name) for name in ("weights", "chains"))
    weights = cache(lambda shape: alone.random_variables(network, shape, init_key))

    def draw_of(sampler: str, case: _Case) -> SIR | Langevin:
        if sampler == "langevin":
            return Langevin(settings.step_size, case.amount)
        share = case.num_chains // case.num_devices
        return SIR(case.amount, chunk_size(share, case.amount))

    for sampler in ("sir", "langevin"):
        for curve, cases in _curves(sampler, latent_shape, settings).items():
            rate = inf  # FLOP/s of the row before
            for size, case in cases:
                row: Row = {"curve": curve, "sampler": sampler, "size": size}
                row |= dataclasses.asdict(case)
                draw, variables = draw_of(sampler, case), weights(case.latent_shape)
                flops = _flops(network, variables, draw, case)
                if flops / rate > settings.max_seconds:
                    yield row | {"skipped": f"some {flops / rate:,.0f} s"}
                    continue
                row |= _time(network, variables, draw, case, key, settings)
                rate = flops / row["seconds"]
                num_bytes = _bytes(network, variables, draw, case)
                row |= {"flops": flops, "flops_per_second": rate}
                row["share_of_ceiling"] = rate / machine.ceiling
                yield row | roofline.placed(flops, num_bytes, row["seconds"], machine)


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


def _time(
    network: nn.Module,
    variables: Any,
    draw: Any,
    case: _Case,
    key: Array,
    settings: Settings,
) -> Row:
    mesh = parallel.mesh_of(jax.local_devices()[: case.num_devices])
    stacked = jax.tree.map(
        lambda leaf: jnp.repeat(leaf[None], case.num_groups, axis=0), variables
    )
    took, _ = timing.time_compiled(
        partial(_draw_groups, network, draw, case.latent_shape, mesh),
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


def _flops(network: nn.Module, variables: Any, draw: Any, case: _Case) -> int:
    z = jax.ShapeDtypeStruct((1, *case.latent_shape), jnp.float32)
    of_one = arithmetic.count_flops(partial(alone.log_ratio, network), variables, z)
    return case.num_chains * case.num_groups * sampling.evaluations(draw) * of_one


def _bytes(network: nn.Module, variables: Any, draw: Any, case: _Case) -> float:
    """Those of all devices together."""
    share = case.num_chains // case.num_devices
    of_group = sum(
        each.times
        * roofline.pass_bytes(
            network,
            variables["params"],
            case.latent_shape,
            (0,),
            share,
            each.num_proposals,
        )
        for each in roofline.passes(draw)
    )
    return case.num_devices * case.num_groups * of_group


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Of log seconds against log size, by least squares; two sizes at least."""
    x, y = np.log(sizes), np.log(seconds)
    return float(np.sum((x - x.mean()) * y) / np.sum((x - x.mean()) ** 2))


def with_slopes(timed: Iterable[Row]) -> Iterator[Row]:
    """Adds to each row the `slope` from the size before on its curve."""
    before: dict[tuple[str, str], Row] = {}
    for row in timed:
        curve = row["curve"], row["sampler"]
        if "seconds" in row:
            if last := before.get(curve):
                both = last, row
                row["slope"] = slope(*([r[n] for r in both] for n in _AXES))
            before[curve] = row
        yield row


def curves(timed: Sequence[Row]) -> list[Row]:
    """Each curve with its `slope` over the upper half of its sizes.

    Args:
      timed: rows; those that were not run are left out.

    Returns:
      Per curve and sampler: `sizes`, medians of `seconds`, and the slope by least
      squares over the larger half of the sizes, two at least; None of one size.
    """
    names = dict.fromkeys((row["curve"], row["sampler"]) for row in timed)
    found = []
    for curve, sampler in names:
        mine = [
            row
            for row in timed
            if (row["curve"], row["sampler"]) == (curve, sampler) and "seconds" in row
        ]
        sizes, seconds = ([row[name] for row in mine] for name in _AXES)
        upper = slice(-max(-(-len(sizes) // 2), 2), None)
        steepness = slope(sizes[upper], seconds[upper]) if len(sizes) > 1 else None
        found.append(
            {
                "curve": curve,
                "sampler": sampler,
                "sizes": sizes,
                "seconds": seconds,
                "slope": steepness,
            }
        )
    return found


_AXES = ("size", "seconds")
