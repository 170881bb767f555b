"""The stage that draws, by all samplers: pictures and arrays."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng, samplers
from ncp_jax.errors import InputError
from ncp_jax.evaluation import diagnostics
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import ENERGIES
from ncp_jax.experiment.vaebm import energies
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.nvae.readjust import readjust_batch_norm
from ncp_jax.pages.parts import pictures, plots
from ncp_jax.pages.parts.quantities import SAMPLERS
from ncp_jax.priors import generation, group_samplers, ncp_prior
from ncp_jax.priors.standardized import itself, with_vae
from ncp_jax.records import array_files
from ncp_jax.records.array_files import Kind

MAX_SHOWN = 64  # pictures of one grid
AGAIN = "run --stage=sample again"
LANGEVIN_FIELDS = ("log_density", "gradient_norm")  # that the report draws


def sample(experiment: Experiment) -> dict[str, Estimate]:
    """Draws by the base prior and the samplers that are asked for; writes samples/."""
    settings, ncp = experiment.config.sample, experiment.load_ncp()
    folder = experiment.path / "samples"
    folder.mkdir(exist_ok=True)
    _remove_old(folder)
    ncp = in_dtype(ncp, settings.dtype)
    of_base = readjusted(experiment, ncp) if settings.num_readjust_iterations else ncp
    prior_of_vae = experiment.config.vae.get("prior", "gaussian")  # a given VAE's is
    if experiment.has_pictures and prior_of_vae == "gaussian":
        _show_temperatures(experiment, ncp)
    batch_size = min(settings.batch_size, settings.num_images)
    num_chains = -(-batch_size // experiment.mesh.size)
    estimates: dict[str, Estimate] = {}
    for name in ("base", *settings.samplers):
        draw = sampler_of(name, settings, ncp, num_chains)
        key = rng.stream(experiment.key("sample"), name)
        drawn_from = energies.prior_of(experiment, name, ncp)
        drawn_from = of_base if name == "base" else drawn_from
        out = generation.generate(
            drawn_from, key, settings.num_images, batch_size, draw, experiment.mesh
        )
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out)):
            hint = "; lower config.sample.langevin_step_size" * (name == "langevin")
            hint += "; lower config.vaebm.step_size" * (name in ENERGIES)
            raise InputError(f"sampler {name!r} left the finite numbers{hint}")
        arrays: dict[str, Any] = {  # in files pictures lead: [N, num_groups, ...]
            f"latents_{b}": np.swapaxes(z, 0, 1) for b, z in enumerate(out.latents)
        }
        info = diagnostics.join_blocks(out.infos)
        if isinstance(info, samplers.LangevinInfo):
            arrays |= {f: np.mean(getattr(info, f), axis=1) for f in LANGEVIN_FIELDS}
        np.savez_compressed(folder / f"{name}.npz", images=out.images, **arrays)
        _save_picture(folder / f"{name}.png", np.asarray(out.images), name)
        moved = "noise" if settings.langevin_in_noise else "z"
        rows = None if name in ENERGIES else ncp.rows
        estimates |= diagnostics.sampler_diagnostics(name, info, moved, rows)
    return estimates


def _show_temperatures(experiment: Experiment, ncp: ncp_prior.NCPPrior) -> None:
    """Pictures of the base prior at several temperatures, from the same noise.

    That noise is that of the base prior's samples, of which these are no part.
    """
    settings = experiment.config.sample
    key, num = rng.stream(experiment.key("sample"), "base"), settings.num_images
    num, size = min(num, MAX_SHOWN), min(settings.batch_size, num)
    for temperature in settings.temperatures:
        of_base = ncp
        if settings.num_readjust_iterations:
            of_base = readjusted(experiment, ncp, temperature)
        draw = group_samplers.Base(temperature)
        out = generation.generate(of_base, key, num, size, draw, experiment.mesh)
        path = experiment.path / "samples" / f"base_at_{temperature:g}.png"
        _save_picture(path, np.asarray(out.images), "base")


def sampler_of(
    name: str, settings: Any, ncp: ncp_prior.NCPPrior, num_chains: int
) -> ncp_prior.DrawGroup:
    """Returns the sampler of one of `quantities.SAMPLERS` with its settings.

    Args:
      name: of the sampler.
      settings: the section `sample` of the config.
      ncp: the prior, whose networks decide how many proposals fit into memory.
      num_chains: on one device.
    """
    step_sizes = tuple(settings.langevin_step_sizes)
    mala: dict[str, Any] = {
        "step_size": settings.mala_step_size,
        "num_steps": settings.mala_num_steps,
        "num_adapt_steps": settings.mala_num_steps // 4,
    }
    num_proposals = settings.num_proposals

    def of_proposals(number: int) -> dict[str, Any]:
        chunk_size = settings.chunk_size or generation.fitting_chunk(
            ncp, num_chains, number, settings.memory_mib * 2**20
        )
        return {"num_proposals": number, "chunk_size": chunk_size}

    makers: dict[str, Callable[[], ncp_prior.DrawGroup]] = {
        "base": lambda: group_samplers.Base(settings.temperature),
        "sir": lambda: group_samplers.SIR(**of_proposals(num_proposals)),
        "asir": lambda: group_samplers.AdaptiveSIR(settings.tolerance, num_proposals),
        "isir": lambda: group_samplers.IteratedSIR(
            **of_proposals(max(num_proposals // settings.num_iterations, 2)),
            num_steps=settings.num_iterations,
        ),
        "langevin": lambda: group_samplers.Langevin(
            step_sizes or settings.langevin_step_size,
            settings.langevin_num_steps,
            settings.langevin_in_noise,
        ),
        "mala": lambda: group_samplers.MALA(**mala),
        "sirmala": lambda: group_samplers.SIRThenMALA(
            **of_proposals(num_proposals), **mala
        ),
        "vaebm": group_samplers.Base,  # where the energy's own dynamics start
        "sirvaebm": lambda: group_samplers.SIR(**of_proposals(num_proposals)),
    }
    return makers[name]()


def in_dtype(ncp: ncp_prior.NCPPrior, dtype: str) -> ncp_prior.NCPPrior:
    """The same with the discriminators' activations in another type."""
    if dtype == "float32":
        return ncp
    if not hasattr(ncp.discriminator, "dtype"):
        raise InputError(
            f"config.sample.dtype = {dtype!r}: {type(ncp.discriminator).__name__} has "
            "no attribute dtype of its activations"
        )
    network = ncp.discriminator.clone(dtype=jnp.dtype(dtype))
    return dataclasses.replace(ncp, discriminator=network)


def _remove_old(folder: Path) -> None:
    """Nothing of another call, perhaps with other samplers, may be taken for ours."""
    for name in SAMPLERS:
        for suffix in ("npz", "png"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    for path in (*folder.glob("base_at_*.png"), folder / "neighbours.png"):
        path.unlink(missing_ok=True)


def readjusted(
    experiment: Experiment, ncp: ncp_prior.NCPPrior, temperature: float | None = None
) -> ncp_prior.NCPPrior:
    """The same on a model whose batch norm suits a temperature, or the draws'.

    Args:
      experiment: the run; `sample.num_readjust_iterations` says how often.
      ncp: the prior.
      temperature: None for that of the base prior's own samples.

    Raises:
      InputError: the model has no batch norm.
    """
    settings, vae = experiment.config.sample, itself(ncp.vae)
    temperature = settings.temperature if temperature is None else temperature
    if not (isinstance(vae, FrozenVAE) and "batch_stats" in vae.variables):
        raise InputError(
            "config.sample.num_readjust_iterations is for models with batch norm: "
            f"{experiment.config.vae.model.name!r} has none"
        )
    if not hasattr(vae.module, "generate"):
        raise InputError(
            "config.sample.num_readjust_iterations is for the batch norm of the model "
            f"'nvae'; that of {experiment.config.vae.model.name!r} stays as trained"
        )
    variables = readjust_batch_norm(
        vae.module,
        vae.variables,
        rng.stream(experiment.key("sample"), "readjust"),
        temperature,
        settings.num_readjust_iterations,
    )
    readjusted = FrozenVAE(vae.module.clone(dtype=jnp.float32), variables)
    return dataclasses.replace(ncp, vae=with_vae(ncp.vae, readjusted))


def load_samples(experiment: Experiment) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays that `sample` has left, by sampler.

    Raises:
      InputError: some are missing, damaged, not finite, of other shapes or fewer than
        the settings say.
    """
    settings, shape = experiment.config.sample, experiment.config.data.shape
    kinds = {"images": Kind((settings.num_images, *shape))}
    for b, block in enumerate(experiment.vae_blocks):
        axes = (settings.num_images, block.num_groups, *block.latent_shape)
        kinds[f"latents_{b}"] = Kind(axes)
    drawn = {}
    for name in ("base", *settings.samplers):
        path = experiment.path / "samples" / f"{name}.npz"
        if not path.exists():
            raise InputError(f"{path} is missing: run --stage=sample first")
        of_chains = {f: Kind(("K", "T")) for f in LANGEVIN_FIELDS}
        expected = kinds | (of_chains if name == "langevin" else {})
        drawn[name] = array_files.read_exactly(path, AGAIN, expected)
    return drawn


def _save_picture(path: Path, samples: np.ndarray, name: str) -> None:
    """A grid of pictures [N, H, W, C] in [0, 1], or a scatter of points [N, 2]."""
    if samples.ndim == 4 and samples.shape[-1] in (1, 3):
        shown = pictures.to_uint8(samples[:MAX_SHOWN])
        pictures.save_png(path, pictures.grid(shown, columns=8))
    elif samples.shape[1:] == (2,):
        (panel,) = plots.points({f"points_{name}": samples})
        path.write_bytes(panel.png)
