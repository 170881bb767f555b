"""From a config to what it names: data, models, training tasks, random streams."""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ncp_jax import parallel, rng
from ncp_jax.data import datasets, pixels
from ncp_jax.errors import InputError, local_path
from ncp_jax.experiment.setup import (
    architectures,
    budget,
    config_files,
    data_seal,
    extension,
    signal,
)
from ncp_jax.experiment.setup.workdir import Workdir
from ncp_jax.models.base import (
    Block,
    FrozenVAE,
    LatentVariableModel,
    is_deterministic,
)
from ncp_jax.priors import ncp_prior
from ncp_jax.priors.directed import DirectedVAE
from ncp_jax.priors.joint import vamp
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.priors.standardized import StandardizedVAE
from ncp_jax.training import batches, vae_update
from ncp_jax.training.checkpoint_records import newest_record, saved_steps
from ncp_jax.training.checkpoints import Checkpoints, Restored, fingerprint
from ncp_jax.training.loop import Task, TrainState
from ncp_jax.training.ncp import preparation, signal_settings
from ncp_jax.training.ncp import signal as signal_training
from ncp_jax.training.ncp.ncp_state import NCPState
from ncp_jax.training.ncp.stage_two import SETTINGS, StageTwo

Array = jax.Array

STAGE_TWO = (*SETTINGS, "formulation")  # fields that config.ncp sets
MAX_NOISE_BYTES = 2 * 10**8  # of noise that stands for a data set


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The settings, the folder and the data of one run, and what is built of them."""

    config: ConfigDict
    workdir: Workdir
    dataset: datasets.Dataset

    @functools.cached_property
    def data_seal(self) -> dict[str, Any]:
        """Which data these are, as of `data_seal.of`: hashes of every example."""
        return data_seal.of(self.config.data.name, self.dataset)

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self.workdir.path

    @property
    def has_pictures(self) -> bool:
        """Whether examples are pictures; else they are points."""
        return self.dataset.train.dtype == np.uint8

    @property
    def held_out(self) -> np.ndarray:
        """The examples that measurements are made on."""
        return getattr(self.dataset, self.config.evaluate.split)

    def key(self, section: str) -> Array:
        """The key that owns the random streams of a section of the settings."""
        key = rng.stream(rng.root(self.config.seed), section)
        own_seed = self.config[section].get("seed", 0)
        return rng.at_step(key, own_seed) if own_seed else key

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices of all processes."""
        return parallel.mesh_of()

    @functools.cached_property
    def vae_module(self) -> nn.Module:
        """The network of stage 1."""
        settings = self.config.data
        return architectures.build_stage_1(
            self.config.vae, settings.shape, settings.num_bits
        )

    @functools.cached_property
    def discriminator(self) -> nn.Module:
        """The network of stage 2."""
        return _network(self.config, self.vae_module)

    def prepare(self, key: Array, stored: Array) -> Array:
        """Makes the model's x from stored examples [B, ...]."""
        if not self.has_pictures:
            return stored
        if self.config.data.binarization == "none":
            return pixels.quantize(stored, self.config.data.num_bits)
        return datasets.binarize(key, stored)  # fixed zeros and ones stay as they are

    def prepare_to_train(self, key: Array, stored: Array) -> Array:
        """The same, with what only training pictures undergo."""
        if self.config.data.horizontal_flips:
            stored = pixels.flip_half(rng.stream(key, "flips"), stored)
        return self._prepare_split(key, stored)

    def _prepare_split(self, key: Array, stored: Array) -> Array:
        """The model's x, every device its share of the batch."""
        return parallel.split(self.mesh, self.prepare(key, stored))

    def vae_task(self) -> tuple[Task, TrainState]:
        """Returns what stage 1 trains, and the state that it starts from."""
        settings, key = self.config.vae, self.key("vae")
        task = Task(
            name="vae",
            data=self._train_data("vae"),
            inputs=self._batches("vae"),
            update=vae_update.make_update(
                self.vae_module,
                architectures.build_optimizer(settings),
                self.prepare_to_train,
                key,
                warmup=architectures.build_warmup(settings, self.vae_module.blocks),
                penalty=architectures.build_penalty(settings),
                ema_decay=settings.ema_decay,
            ),
            validate=vae_update.make_validate(
                self.vae_module, self._prepare_split, rng.stream(key, "valid")
            ),
            place=functools.partial(parallel.replicate, self.mesh),
        )
        return task, self._initial_vae()

    @functools.cached_property
    def ncp_optimizer(self) -> optax.GradientTransformation:
        """What trains the discriminators."""
        return architectures.build_optimizer(self.config.ncp)

    @functools.cached_property
    def stage_two(self) -> StageTwo:
        """How stage 2 is trained."""
        settings = self.config.ncp
        return StageTwo(
            self.discriminator,
            self.ncp_optimizer,
            is_train_there=self.config.data.on_device,
            **{name: settings[name] for name in STAGE_TWO},
        )

    def ncp_task(self, vae: FrozenVAE) -> tuple[Task, NCPState]:
        """Returns what stage 2 trains on `vae`, and the state that it starts from."""
        self._check_batch_size("ncp")
        key, model = self.key("ncp"), self.in_signal_space(vae)
        if isinstance(model, SignalVAE):
            train, valid = signal.encoded(self, model)
            stage = dataclasses.replace(self.stage_two, num_passes=1)
            prepare = held_out = preparation.as_stored
        else:
            train, valid, stage = self.dataset.train, self.dataset.valid, self.stage_two
            prepare, held_out = self.prepare_to_train, self.prepare
        given = signal_training.trained(model)
        task = stage.task(
            given,
            train,
            valid,
            key,
            prepare=prepare,
            prepare_held_out=held_out,
            mesh=self.mesh,
        )
        return task, self._initial_ncp(given)

    def in_signal_space(self, vae: FrozenVAE) -> LatentVariableModel:
        """What stage 2 reweights: `vae`, or its view in other coordinates."""
        if not self.config.ncp.directions.cap:
            return StandardizedVAE(vae) if self.config.ncp.standardize else vae
        return signal.model(self, vae, fingerprint(vae.variables))

    def checkpoints(
        self,
        stage: str,
        vae: FrozenVAE | None = None,
        folder: Path | None = None,
        seconds_before: float = 0.0,
    ) -> Checkpoints:
        """Opens the checkpoints of "vae", or of "ncp" on `vae`; to use in a `with`.

        Args:
          stage: whose.
          vae: that stage "ncp" reweights.
          folder: that they are in, if not where the stage keeps its own.
          seconds_before: that led to what is saved first, elsewhere.
        """
        # Finding directions is part of the stage.
        started = time.monotonic() - seconds_before
        metadata = {"config": self.workdir.fingerprint(stage)}
        if vae is not None:  # its discriminators fit no other
            metadata["vae"] = fingerprint(vae.variables)
            model = self.in_signal_space(vae)
            if isinstance(model, SignalVAE | DirectedVAE):
                metadata["directions"] = model.directions.digest()[:16]
        folder = folder or self.path / stage / "checkpoints"
        if stage == "vae":
            metadata |= self._origins(folder)
        lengths = [*extension.earlier(folder.parent), *self.workdir.earlier(stage)]
        also = {"config": {length["fingerprint"] for length in lengths}}
        return Checkpoints(folder, metadata, started, also)

    def _origins(self, folder: Path) -> dict[str, str]:
        """Hashes of the files that stage 1 comes from, by the setting that names them.

        The checkpoints of a folder remember them: by then a file may have gone, or not
        be named again.
        """
        before, found = newest_record(folder), {}
        for field in ("checkpoint", "pretrained", "init_from"):
            name, given = f"vae.{field}", self.config.vae[field]
            found[name] = before.get(name)
            try:
                if given:
                    found[name] = _digest(field, given)
            except (InputError, FileNotFoundError):
                if found[name] is None:
                    raise
        return {name: digest for name, digest in found.items() if digest is not None}

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The latent groups of the VAE."""
        return self.vae_module.blocks

    @property
    def vae_blocks(self) -> tuple[Block, ...]:
        """The same, of the VAE itself, whose z the samples keep."""
        return self.blocks

    @property
    def is_deterministic(self) -> bool:
        """Whether z is a function of x, so that there are no likelihoods."""
        return is_deterministic(self.vae_module)

    @property
    def is_trained(self) -> bool:
        """Whether both stages are done, with these settings."""
        return all(map(self.workdir.is_done, ("vae", "ncp")))

    def load_vae(self) -> FrozenVAE:
        """Returns the stage-1 model of lowest validation loss."""
        return vae_update.freeze(self.vae_module, self.best_stage_1().state)

    def best_stage_1(self) -> Restored:
        """Returns the checkpoint of stage 1 of lowest validation loss."""
        return self._best_checkpoint("vae", self._vae_shapes)

    def check_stage_1(self, folder: Path) -> None:
        """Reads the best and the last stage 1 of a folder of checkpoints.

        Raises:
          InputError: they are damaged, or of other settings.
        """
        with self.checkpoints("vae", folder=folder) as saved:
            saved.restore_best(self._vae_shapes)
            saved.restore(self.config.vae.num_steps, self._vae_shapes)

    def load_ncp(self) -> ncp_prior.NCPPrior:
        """Returns the prior of lowest held-out NCE losses, on its frozen VAE."""
        vae = self.load_vae()
        model = self.in_signal_space(vae)
        trained = signal_training.trained(model)
        state = self._best("ncp", self.state_shapes(vae), vae)
        params = jax.device_put(state.best_params(trained.blocks))
        groups = tuple(self.config.sample.groups) or None
        return signal_training.prior(model, self.discriminator, params, groups)

    def state_shapes(self, vae: FrozenVAE | None = None) -> Any:
        """Shapes of the state of stage 1, or of stage 2 on `vae`; nothing is made."""
        if vae is None:
            return self._vae_shapes
        given = signal_training.trained(self.in_signal_space(vae))
        return jax.eval_shape(lambda: self._initial_ncp(given))

    @functools.cached_property
    def _vae_shapes(self) -> TrainState:
        return jax.eval_shape(self._initial_vae)

    def initial_variables(self) -> Any:
        """Returns the variables that stage 1 starts from."""
        init_key = rng.stream(self.key("vae"), "init")
        shape = self.config.data.shape
        variables = architectures.init_vae(self.vae_module, shape, init_key)
        if "statistics" in variables:
            scale = 255.0 if self.has_pictures else 1.0
            mean = self.dataset.train.mean(axis=0, dtype=np.float64) / scale
            variables["statistics"] = {"data_mean": jnp.asarray(mean, jnp.float32)}
        if self.config.vae.prior == "vamp":
            variables["params"] |= {"pseudo_inputs": self._pseudo_inputs()}
        return variables

    def _pseudo_inputs(self) -> Array:
        """Where those of "vamp" start: at random training examples."""
        num, train = self.config.vae.prior_settings.num_components, self.dataset.train
        with jax.ensure_compile_time_eval():  # shapes alone may be asked for
            seed = rng.numpy_seed(rng.stream(self.key("vae"), "pseudo-inputs"))
        order = np.random.default_rng(seed).permutation(len(train))
        scale = 255.0 if self.has_pictures else 1.0
        examples = jnp.asarray(train[np.sort(order[:num])] / scale, jnp.float32)
        is_binary = self.config.vae.model.likelihood == "bernoulli"
        return vamp.raw_inputs(examples, is_binary)

    def _initial_vae(self) -> TrainState:
        variables, shape = self.initial_variables(), self.config.data.shape
        init_state = functools.partial(
            vae_update.init_state,
            self.vae_module,
            optimizer=architectures.build_optimizer(self.config.vae),
            x=jnp.zeros((1, *shape)),
            ema_decay=self.config.vae.ema_decay,
            penalty=architectures.build_penalty(self.config.vae),
        )
        key = rng.stream(self.key("vae"), "penalty")
        return jax.jit(init_state)(variables, key=key)

    def _initial_ncp(self, vae: LatentVariableModel) -> NCPState:
        return self.stage_two.initial(vae, self.key("ncp"))

    def _train_data(self, section: str) -> dict[str, Array | None]:
        return batches.on_devices(
            self.mesh,
            self.dataset.train,
            self.dataset.valid,
            self._check_batch_size(section),
            self.config.data.on_device,
        )

    def _batches(self, section: str) -> Callable[[int, int], Array]:
        return batches.by_step(
            self.mesh,
            rng.stream(self.key(section), "batch"),
            self.dataset.train,
            self.config[section].batch_size,
            self.config.data.on_device,
        )

    def check_batch_sizes(self) -> None:
        """Refuses batches that the devices cannot share, of what is yet to be trained.

        Raises:
          InputError: naming the setting.
        """
        for section in ("vae", "ncp"):
            steps = saved_steps(self.path / section / "checkpoints")
            if self.config[section].num_steps not in steps:
                self._check_batch_size(section)

    def _check_batch_size(self, section: str) -> int:
        batch_size = self.config[section].batch_size
        parallel.check_batch_size(self.mesh, f"config.{section}.batch_size", batch_size)
        return batch_size

    def _best(self, stage: str, like: Any, vae: FrozenVAE | None = None) -> Any:
        return self._best_checkpoint(stage, like, vae).state

    def _best_checkpoint(
        self, stage: str, like: Any, vae: FrozenVAE | None = None
    ) -> Restored:
        num_steps = self.config[stage].num_steps
        if vae and extension.is_outdated(self.path, fingerprint(vae.variables)):
            raise InputError(
                f"stage 2 in {self.path} is of stage 1 as it was before it became "
                "longer: run --stage=ncp first"
            )
        with self.checkpoints(stage, vae) as saved:
            if saved.latest_step() != num_steps:
                raise InputError(
                    f"stage {stage} has not reached its {num_steps} steps in "
                    f"{self.path}: run --stage={stage} first"
                )
            return saved.restore_best(like)


def _digest(field: str, name: str) -> str:
    """A hash of the file that a field of config.vae names."""
    if field == "checkpoint":
        path: str | Path = local_path("config.vae.checkpoint", name)
    else:
        path = config_files.weights_path(name, field)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def check_networks(config: ConfigDict) -> None:
    """Refuses networks that do not fit one another, before anything is trained.

    Raises:
      InputError: naming what does not fit.
    """
    settings = config.data
    likelihood, shape = config.vae.model.likelihood, tuple(settings.shape)
    if likelihood == "logistic_mixture" and (len(shape) != 3 or shape[-1] != 3):
        raise InputError(
            "config.vae.model.likelihood = 'logistic_mixture' is of red, green and "
            f"blue: config.data.shape is {shape}, it must end in 3; for grey pictures "
            "choose 'bernoulli', or 'normal' with config.data.binarization='none'"
        )
    module = architectures.build_stage_1(config.vae, settings.shape, settings.num_bits)
    key, x = jax.random.key(0), budget.abstract(1, *settings.shape)
    budget.check_parameters(config, "vae", jax.eval_shape(module.init, key, x, key), 1)
    ratios, network = _ratios(config, module.blocks), _network(config, module)
    for num_groups, latent_shape, context_shape in ratios:
        z, context = (
            budget.abstract(1, *latent_shape),
            budget.abstract(1, *context_shape),
        )
        variables = jax.eval_shape(network.init, key, z, context)
        budget.check_parameters(config, "ncp", variables, num_groups)
    check_groups(config, module.blocks)
    if config.sample.num_readjust_iterations and config.vae.model.name != "nvae":
        raise InputError(
            "config.sample.num_readjust_iterations is for the batch norm of the model "
            f"'nvae', not for {config.vae.model.name!r}"
        )
    if config.vae.penalty_weight and config.vae.model.name != "nvae":
        raise InputError(
            "config.vae.penalty_weight is for the convolutions of the model 'nvae': "
            f"{config.vae.model.name!r} has none of them"
        )


def _network(config: ConfigDict, vae_module: Any) -> nn.Module:
    """The network of stage 2; alone, or as a part of one that is given directions.

    Raises:
      InputError: it does not fit the VAE's groups.
    """
    network = architectures.build_discriminator(config.ncp.discriminator)
    settings = signal.settings_of(config)
    if settings is not None and settings.context == "features":
        signal_settings.check_features(vae_module)
    return signal_settings.network(settings, vae_module, network)


def _ratios(config: ConfigDict, blocks: tuple[Block, ...]) -> list[Block]:
    """What the discriminators read: (how many of them, z_k or u_k, context)."""
    settings = signal.settings_of(config)
    if settings is None:
        return list(blocks)
    if config.ncp.discriminator.name != "mlp":
        raise InputError(
            f"config.ncp.discriminator.name = {config.ncp.discriminator.name!r} reads "
            "maps: on signal directions (config.ncp.directions.cap) it must be 'mlp'"
        )
    if settings.context == "features":
        return list(blocks)
    if settings.with_maps:
        return [block._replace(context_shape=(0,)) for block in blocks]
    num_groups = sum(block.num_groups for block in blocks)
    widest = max(math.prod(block.latent_shape) for block in blocks)
    cap, size = (min(n, widest) for n in (settings.cap, settings.num_earlier))
    if settings.is_joint:
        return [Block(1, (num_groups * cap,), (0,))]
    return [Block(num_groups, (cap,), (num_groups * size,))]


def check_groups(config: ConfigDict, blocks: tuple[Block, ...]) -> None:
    """Refuses settings of groups that a model with these blocks does not have.

    Raises:
      InputError: naming the setting.
    """
    num_groups = sum(block.num_groups for block in blocks)
    for name, groups in (
        ("sample.groups", tuple(config.sample.groups)),
        ("evaluate.audit_groups", tuple(config.evaluate.audit_groups)),
    ):
        if any(k >= num_groups for k in groups):
            raise InputError(
                f"config.{name} = {groups}: the model has the groups 0 to "
                f"{num_groups - 1}"
            )
    directions = config.ncp.directions
    if directions.cap and directions.is_joint:
        if config.sample.groups:
            raise InputError(
                "config.sample.groups chooses among the groups' ratios: with "
                "config.ncp.directions.is_joint there is one of them all"
            )
        num_groups = 1
    for name, values in (
        ("sample.langevin_step_sizes", config.sample.langevin_step_sizes),
        ("ncp.weight_decays", config.ncp.weight_decays),
    ):
        if values and len(values) != num_groups:
            raise InputError(
                f"config.{name} holds {len(values)} numbers for {num_groups} groups"
            )


def load_data(config: ConfigDict) -> datasets.Dataset:
    """Loads the data set; with binarization "fixed", its pixels are drawn once."""
    settings = config.data
    dataset = datasets.load(
        settings.name,
        settings.shape,
        settings.dir,
        settings.download,
        config.seed,
        crop=settings.crop,
        cache_dir=settings.cache_dir,
    )
    for section in ("vae", "ncp"):
        size = config[section].batch_size
        if size > len(dataset.train):
            raise InputError(
                f"config.{section}.batch_size = {size} is more than the "
                f"{len(dataset.train)} training examples of {settings.name}"
            )
    if config.vae.prior == "vamp":
        size = config.vae.prior_settings.num_components
        if size > len(dataset.train):
            raise InputError(
                f"config.vae.prior_settings.num_components = {size} pseudo-inputs "
                f"start at training examples: {settings.name} has {len(dataset.train)}"
            )
    if settings.horizontal_flips and dataset.train.ndim != 4:
        raise InputError(
            f"config.data.horizontal_flips is for pictures: {settings.name} has none"
        )
    is_binary = dataset.train.dtype == np.uint8 and settings.binarization != "none"
    if is_binary != (config.vae.model.likelihood == "bernoulli"):
        kind = "zeros and ones" if is_binary else "real numbers"
        raise InputError(
            f"config.vae.model.likelihood = {config.vae.model.likelihood!r} is no "
            f"likelihood of {kind}, which {settings.name} with "
            f"config.data.binarization = {settings.binarization!r} holds"
        )
    if settings.binarization != "fixed":
        return dataset
    key = rng.stream(rng.root(config.seed), "fixed binarization")
    return datasets.Dataset(
        *(
            255 * np.asarray(datasets.binarize(rng.at_step(key, i), split), np.uint8)
            for i, split in enumerate(map(jnp.asarray, dataset))
        )
    )


def noise_for_data(config: ConfigDict) -> datasets.Dataset:
    """Examples of the right shape and type, where their values do not matter."""
    shape = tuple(config.data.shape)
    smallest = max(config.vae.batch_size, config.ncp.batch_size)
    num_train = max(smallest, min(10_000, MAX_NOISE_BYTES // math.prod(shape)))
    if config.vae.prior == "vamp":  # as many pseudo-inputs start at training examples
        num_train = max(num_train, config.vae.prior_settings.num_components)
    generator = np.random.default_rng(config.seed)

    def draw(number: int) -> np.ndarray:
        if len(shape) < 3:
            return generator.normal(size=(number, *shape)).astype(np.float32)
        return generator.integers(256, size=(number, *shape), dtype=np.uint8)

    return datasets.Dataset(draw(num_train), draw(smallest), draw(smallest))
