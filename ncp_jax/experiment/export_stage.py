"""The stage that draws many pictures for other programs: files, in constant memory."""

import contextlib
import dataclasses
import json
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ncp_jax import rng
from ncp_jax.data.partial_array import PartialArray
from ncp_jax.errors import InputError
from ncp_jax.experiment import sample_stage
from ncp_jax.experiment.setup.export_record import RECORD, ExportRecord
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import ENERGIES
from ncp_jax.experiment.vaebm import energies
from ncp_jax.nested import flatten
from ncp_jax.pages.parts import pictures
from ncp_jax.priors import generation
from ncp_jax.priors.generation import Generated
from ncp_jax.records import whole_file
from ncp_jax.training.checkpoint_records import best_weights

IMAGES = "arr_0"  # the key that evaluators of an npz read
SECONDS_BETWEEN_LINES = 10.0
_OF_MALA = ("mala_step_size", "mala_num_steps")
_OF_LANGEVIN = ("step_size", "step_sizes", "num_steps", "in_noise")
OF_STAGE_1 = ("file", "dtype")  # settings of `export` that no picture has
OF_ALL = ("groups", "batch_size", "dtype")
OF_SAMPLER = {  # settings of `sample` that a picture depends on
    "base": ("temperature", "num_readjust_iterations"),
    "sir": ("num_proposals",),
    "asir": ("num_proposals", "tolerance"),
    "isir": ("num_proposals", "num_iterations"),
    "langevin": tuple(f"langevin_{name}" for name in _OF_LANGEVIN),
    "mala": _OF_MALA,
    "sirmala": ("num_proposals", *_OF_MALA),
    "vaebm": (),
    "sirvaebm": ("num_proposals",),
}
OF_DYNAMICS = ("step_size", "num_sampling_steps")  # settings of `vaebm`, likewise
_PNG_END = b"IEND\xaeB`\x82"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of a member of an archive: its bytes know no time


def export(experiment: Experiment) -> Path:
    """Draws `config.export.num_images` pictures into export/SAMPLER/.

    They are numbered PNGs in images/, or one npz of `arr_0`, uint8 [N, H, W, C] (what
    is no picture: float32).  With `config.export.latents` their z lie in
    `latents_B.npy`, or in the npz under that key, [N, num_groups, ...] of block B.  The
    first are those that the stage `sample` draws.  A call that was stopped goes on.

    Returns:
      The folder.

    Raises:
      InputError: other settings or weights than a call before; or the sampler leaves
        the finite numbers.
    """
    settings = experiment.config.export
    name, is_png = settings.sampler, settings.format == "png"
    if is_png and not experiment.has_pictures:
        raise InputError(
            f"config.export.format = 'png' is for pictures, and "
            f"{experiment.config.data.name} has none: give 'npz'"
        )
    folder = experiment.path / "export" / name
    record = ExportRecord(folder, _identity(experiment))
    writer = _Writer(folder, settings.num_images, is_png, settings.latents)
    if record.is_done:
        writer.check()
        print(f"export: complete, {settings.num_images:,} of {name} in {folder}")
        return folder
    prior, draw = _sampler(experiment, record.chunk_size)
    record.begin(getattr(draw, "chunk_size", None))
    batch_size = min(experiment.config.sample.batch_size, settings.num_images)
    key = rng.stream(experiment.key("sample"), name)
    last_line = 0.0
    with contextlib.closing(writer):
        batches = generation.batches(
            prior,
            key,
            settings.num_images,
            batch_size,
            draw,
            experiment.mesh,
            first=record.num_done,
        )
        for batch in batches:
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(batch)):
                raise InputError(f"sampler {name!r} left the finite numbers")
            writer.write(record.num_done, batch)
            record.add(len(batch.images))
            if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                said = f"{record.num_done:,} of {settings.num_images:,}"
                print(f"export: {said}", flush=True)
    writer.finish()
    record.finish()
    print(f"export: {folder}")
    return folder


def _sampler(experiment: Experiment, chunk_size: int | None) -> tuple[Any, Any]:
    """The prior and the sampler, with the chunk of a call before: for the same bits."""
    settings, name = experiment.config.sample, experiment.config.export.sampler
    prior = sample_stage.in_dtype(experiment.load_ncp(), settings.dtype)
    batch_size = min(settings.batch_size, experiment.config.export.num_images)
    num_chains = -(-batch_size // experiment.mesh.size)
    draw: Any = sample_stage.sampler_of(name, settings, prior, num_chains)
    if name == "base" and settings.num_readjust_iterations:
        prior = sample_stage.readjusted(experiment, prior)
    prior = energies.prior_of(experiment, name, prior)
    if chunk_size is not None:
        draw = dataclasses.replace(draw, chunk_size=chunk_size)
    return prior, draw


def _identity(experiment: Experiment) -> dict[str, Any]:
    """What the files depend on, by name."""
    config = json.loads(experiment.config.to_json())
    settings = config["export"]
    sampler = settings["sampler"]
    names, dynamics = (*OF_ALL, *OF_SAMPLER[sampler]), {}
    weights = experiment.workdir.weights("sample")
    if sampler in ENERGIES:  # whether or not config.sample.samplers names it
        dynamics = {f"config.vaebm.{n}": config["vaebm"][n] for n in OF_DYNAMICS}
        best = best_weights(experiment.path / sampler / "checkpoints")
        weights = weights | ({sampler: best._asdict()} if best else {})
    return {
        **{f"config.export.{k}": settings[k] for k in settings if k not in OF_STAGE_1},
        **{f"config.sample.{name}": config["sample"][name] for name in names},
        **dynamics,
        "config.seed": config["seed"],
        "devices": experiment.mesh.size,
        **{f"weights.{k}": v for k, v in flatten(weights)},
    }


class _Writer:
    """Puts batches where they belong; what is written twice has the same bytes."""

    def __init__(self, folder: Path, num_images: int, is_png: bool, has_latents: bool):
        self._folder, self._num_images = folder, num_images
        self._is_png, self._has_latents = is_png, has_latents
        self._digits = max(len(str(num_images - 1)), 6)
        self._arrays: dict[str, PartialArray] = {}

    def write(self, first: int, batch: Generated) -> None:
        """Writes a batch to the disk; its first picture has this number."""
        images = np.asarray(batch.images)
        if images.ndim == 4:
            images = pictures.to_uint8(images)
        if self._is_png:
            (self._folder / "images").mkdir(exist_ok=True)
            for i, image in enumerate(images, start=first):
                pictures.save_png(self._png(i), image)
        rows = {} if self._is_png else {IMAGES: images}
        if self._has_latents:
            rows |= {
                f"latents_{b}": np.swapaxes(z, 0, 1)  # [B, num_groups, ...]
                for b, z in enumerate(batch.latents)
            }
        for name, values in rows.items():
            array = self._array(name, values)
            if array.num_tried < first:
                raise self._lost(f"{name}.partial")
            for i, value in enumerate(values, start=first):
                array.write(i, value)
            array.num_tried = first + len(values)
            array.save()

    def finish(self) -> None:
        """Gives the arrays, closed, their names, or makes one archive of them."""
        for partial in self._folder.glob("*.partial"):
            os.replace(partial, partial.with_suffix(".npy"))
        for record in self._folder.glob("*.json"):
            if record.name != RECORD:  # of a partial array
                record.unlink()
        if not self._is_png:
            self._pack()
        self.check()

    def check(self) -> None:
        """Raises `InputError` if a file is not there, or not whole."""
        files = [self._folder / "images.npz"]
        if self._is_png:
            files = [self._png(i) for i in range(self._num_images)]
        if missing := [path.name for path in files if not _is_whole(path)]:
            raise self._lost(missing[0])
        has_latents = any(self._folder.glob("latents_*.npy"))
        if self._is_png and self._has_latents and not has_latents:
            raise self._lost("latents_0.npy")

    def _png(self, i: int) -> Path:
        return self._folder / "images" / f"{i:0{self._digits}}.png"

    def _lost(self, name: str) -> InputError:
        return InputError(
            f"{self._folder} has lost {name}: delete that folder and export again"
        )

    def close(self) -> None:
        """Closes what is open."""
        for array in self._arrays.values():
            array.__exit__()

    def _array(self, name: str, values: np.ndarray) -> PartialArray:
        if name not in self._arrays:
            shape = (self._num_images, *values.shape[1:])
            self._arrays[name] = PartialArray(
                self._folder / f"{name}.npy", shape, values.dtype
            )
        return self._arrays[name]

    def _pack(self) -> None:
        path, members = self._folder / "images.npz", sorted(self._folder.glob("*.npy"))
        if not path.exists():  # else killed while it removed what is packed
            self._archive(path, members)
        for member in members:
            member.unlink()

    def _archive(self, path: Path, members: list[Path]) -> None:
        with (
            whole_file.opened(path) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        ):
            for member in members:
                entry = zipfile.ZipInfo(member.name, _EPOCH)
                with (
                    member.open("rb") as source,
                    archive.open(entry, "w", force_zip64=True) as target,
                ):
                    shutil.copyfileobj(source, target, 2**20)


def _is_whole(path: Path) -> bool:
    """Whether a picture or an archive is there to its end."""
    try:
        if path.suffix == ".npz":
            return zipfile.is_zipfile(path)
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:  # none, or shorter
        return False
