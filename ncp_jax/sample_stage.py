"""The stage that draws: base prior, SIR and Langevin, as pictures and as arrays."""

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import evaluation, pictures, plots, prior, rng, samplers
from ncp_jax.errors import InputError
from ncp_jax.importance import Estimate
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.nvae_readjust import readjust_batch_norm
from ncp_jax.wiring import Experiment
from ncp_jax.workdir import SAMPLERS

FIELDS = {"base": (), "sir": (), "langevin": samplers.LangevinInfo._fields}
MAX_SHOWN = 64  # pictures of one grid


def sample(experiment: Experiment) -> dict[str, Estimate]:
    """Draws by the base prior, SIR and Langevin; writes samples/."""
    settings, ncp = experiment.config.sample, experiment.load_ncp()
    folder = experiment.path / "samples"
    folder.mkdir(exist_ok=True)
    draws = {
        "base": prior.by_base(settings.temperature),
        "sir": prior.by_sir(settings.num_proposals, settings.chunk_size),
        "langevin": prior.by_langevin(
            settings.langevin_step_size,
            settings.langevin_num_steps,
            settings.langevin_in_noise,
        ),
    }
    of_base = _readjusted(experiment, ncp) if settings.num_readjust_iterations else ncp
    estimates: dict[str, Estimate] = {}
    for name, draw in draws.items():
        key = rng.stream(experiment.key("sample"), name)
        drawn_from = of_base if name == "base" else ncp
        out = prior.generate(
            drawn_from, key, settings.num_images, settings.batch_size, draw
        )
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out)):
            hint = "; lower config.sample.langevin_step_size" * (name == "langevin")
            raise InputError(f"sampler {name!r} left the finite numbers{hint}")
        arrays: dict[str, Any] = {
            f"latents_{b}": z.swapaxes(0, 1) for b, z in enumerate(out.latents)
        }
        info = jax.tree.map(lambda *blocks: np.concatenate(blocks), *out.infos)
        if isinstance(info, samplers.LangevinInfo):
            arrays |= {f: np.mean(v, axis=-1) for f, v in info._asdict().items()}
        np.savez_compressed(folder / f"{name}.npz", images=out.images, **arrays)
        _save_picture(folder / f"{name}.png", out.images, name)
        moved = "noise" if settings.langevin_in_noise else "z"
        estimates |= evaluation.sampler_diagnostics(info, moved)
    return estimates


def _readjusted(experiment: Experiment, ncp: prior.NCPPrior) -> prior.NCPPrior:
    """The same on a model whose batch norm suits the temperature of the base draws."""
    settings, vae = experiment.config.sample, ncp.vae
    if not (isinstance(vae, FrozenVAE) and "batch_stats" in vae.variables):
        raise InputError(
            "config.sample.num_readjust_iterations is for models with batch norm: "
            f"{experiment.config.vae.model.name!r} has none"
        )
    variables = readjust_batch_norm(
        vae.module,
        vae.variables,
        rng.stream(experiment.key("sample"), "readjust"),
        settings.temperature,
        settings.num_readjust_iterations,
    )
    readjusted = FrozenVAE(vae.module.clone(dtype=jnp.float32), variables)
    return dataclasses.replace(ncp, vae=readjusted)


def load_samples(experiment: Experiment) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays that `sample` has left, by sampler.

    Raises:
      InputError: some are missing or damaged.
    """
    drawn = {}
    for name in SAMPLERS:
        path = experiment.path / "samples" / f"{name}.npz"
        if not path.exists():
            raise InputError(f"{path} is missing: run --stage=sample first")
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                drawn[name] = dict(arrays)
            if missing := {"images", *FIELDS[name]} - drawn[name].keys():
                raise ValueError(f"lacks {sorted(missing)}")
        except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({error}): run --stage=sample again"
            ) from error
    return drawn


def _save_picture(path: Path, samples: np.ndarray, name: str) -> None:
    """A grid of pictures [N, H, W, C] in [0, 1], or a scatter of points [N, 2]."""
    if samples.ndim == 4:
        shown = pictures.to_uint8(samples[:MAX_SHOWN])
        pictures.save_png(path, pictures.grid(shown, columns=8))
    else:
        (panel,) = plots.points({f"points_{name}": samples})
        path.write_bytes(panel.png)
