"""How the energy learns: pictures of data against pictures where the dynamics end."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.models.nvae.regularizers import init_power_iteration, spectral_penalty
from ncp_jax.priors.pixel_energy.energy import hidden_kernels
from ncp_jax.priors.pixel_energy.held_out import energy_distance
from ncp_jax.priors.pixel_energy.joint import Dynamics, PixelEnergyPrior, PyTree
from ncp_jax.priors.pixel_energy.settings import Settings
from ncp_jax.training import loop, optimizers
from ncp_jax.training.loop import Metrics, Task, TrainState

Array = jax.Array
Prepare = Callable[[Array, Array], Array]  # (key, stored examples) -> x for the energy

VALID_BATCH_SIZE = 250  # chains at a time, where nothing is learnt


class EnergyState(TrainState):
    """An energy in training; `Contrast.initial` makes one."""

    chains: Array | None = None  # [M, D] joint noise where earlier negatives ended
    lowest: Array = struct.field(default=None)  # [] distance of the best validation
    waited: Array = struct.field(default=None)  # [] int32 validations since
    has_exploded: Array = struct.field(default=None)  # [] bool: nothing moves any more


class Fixed(NamedTuple):
    """Arrays that updates and validations read."""

    prior: PixelEnergyPrior  # its own energy does not count
    starts: Array | None  # [N, D] joint noise of draws; None for N(0, I)
    valid: Array  # [M, ...] stored held-out pictures


def contrastive_loss(
    prior: PixelEnergyPrior, x: Array, negatives: Array, energy_penalty: float
) -> tuple[Array, Metrics]:
    """E[E(x)] - E[E(x')] + penalty (E[E(x)^2] + E[E(x')^2]) over both batches.

    Its gradient by the parameters, but for the penalty, is that of -log h(x) in the
    limit of long chains (Eq. 7 of VAEBM).

    Args:
      prior: whose energy learns.
      x: [B, *data_shape] pictures of data.
      negatives: [B, *data_shape] pictures where the dynamics ended.
      energy_penalty: JEM's and VAEBM's remedy against energies that drift.

    Returns:
      [] nats, and the mean energies of both.
    """
    energies = prior.energy(jnp.concatenate([x, negatives]))
    of_data, of_draws = jnp.mean(energies[: len(x)]), jnp.mean(energies[len(x) :])
    squares = jnp.mean(energies[: len(x)] ** 2) + jnp.mean(energies[len(x) :] ** 2)
    loss = of_data - of_draws + energy_penalty * squares
    return loss, {"energy_of_data": of_data, "energy_of_draws": of_draws}


@dataclasses.dataclass(frozen=True)
class Contrast:
    """What `loop.fit` trains: updates, validations and the state they start from.

    Attributes:
      settings: of the updates.
      key: PRNG key; owned.
      prepare: makes pictures of stored examples, in training.
      prepare_held_out: likewise, of held-out ones.
      mesh: the devices that share a batch.
    """

    settings: Settings
    key: Array
    prepare: Prepare
    prepare_held_out: Prepare
    mesh: Mesh

    def task(self, name: str, train: np.ndarray, fixed: Fixed) -> Task:
        """The task of a stage called `name`; `train` [N, ...] stays on the host."""
        number = self.settings.batch_size
        key = rng.stream(self.key, "batches")

        def inputs(first: int, n: int) -> tuple[Array, Array]:
            steps = first + jnp.arange(n, dtype=jnp.int32)
            keys = jax.vmap(rng.at_step, (None, 0))(key, steps)
            rows = jax.vmap(lambda k: jax.random.randint(k, (number,), 0, len(train)))
            return steps, jnp.asarray(train[np.asarray(rows(keys))])

        place = partial(parallel.replicate, self.mesh)
        return Task(name, place(fixed), inputs, self.update, self.validate, place=place)

    def initial(self, prior: PixelEnergyPrior, x: Array) -> EnergyState:
        """The state before the first update, of E = 0.

        Args:
          prior: whose network it is.
          x: [1, *data_shape], a picture of the right shape.
        """
        settings = self.settings
        params = prior.network.init(rng.stream(self.key, "init"), x)["params"]
        key = rng.stream(self.key, "power iteration")
        plain = loop.init_state(
            params,
            {},
            self._optimizer,
            settings.ema_decay,
            init_power_iteration(hidden_kernels(params), key),
        )
        chains = None
        if settings.replay_share:
            keys = jax.random.split(rng.stream(self.key, "chains"), settings.num_chains)
            chains = prior.of_normal(keys)
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        return EnergyState(
            **fields,
            chains=chains,
            lowest=jnp.asarray(jnp.inf),
            waited=jnp.zeros((), jnp.int32),
            has_exploded=jnp.asarray(False),
        )

    def update(
        self, state: EnergyState, fixed: Fixed, given: tuple[Array, Array]
    ) -> tuple[EnergyState, Metrics]:
        """One step of Adam; none once the energies are beyond all bounds.

        The state of then is kept, so that a validation can say so and end the training.
        """
        settings, (step, stored) = self.settings, given
        key = rng.at_step(rng.stream(self.key, "updates"), step)
        x = self.prepare(rng.stream(key, "prepare"), stored)
        keys = jax.random.split(rng.stream(key, "chains"), settings.batch_size)
        rows, start = self._start(state, fixed, key, keys)
        x, start = parallel.split(self.mesh, (x, start))
        still = jax.lax.stop_gradient(state.params)
        moving = self._prior(fixed, still, settings.num_langevin_steps)
        end = moving.moved(rng.stream(keys, "langevin"), start)
        negatives = jax.lax.stop_gradient(moving.unfold(end).x)
        noisy = self._with_noise(rng.stream(key, "noise"), jnp.stack([x, negatives]))

        def loss(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
            prior = dataclasses.replace(moving, energy_params=params)
            value, metrics = contrastive_loss(
                prior, noisy[0], noisy[1], settings.energy_penalty
            )
            penalty, vectors = spectral_penalty(
                hidden_kernels(params), state.penalty_state
            )
            return value + settings.spectral_penalty * penalty, (metrics, vectors)

        (value, (metrics, vectors)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params
        )
        new = loop.apply_gradients(
            state, gradients, self._optimizer, settings.ema_decay
        ).replace(penalty_state=vectors)
        if state.chains is not None:
            new = new.replace(chains=state.chains.at[rows].set(end))
        norm, size = optax.tree.norm(gradients), jnp.stack([*metrics.values()])
        is_fine = jnp.isfinite(value) & jnp.isfinite(norm) & ~state.has_exploded
        is_fine &= jnp.all(jnp.abs(size) <= settings.max_energy)  # False for NaN
        kept = jax.tree.map(partial(jnp.where, is_fine), new, state)
        kept = kept.replace(step=state.step + 1, has_exploded=~is_fine)
        seen = {"loss": value, "gradient_norm": norm, **metrics}
        seen = {name: jnp.where(is_fine, each, 0.0) for name, each in seen.items()}
        return kept, seen | {"has_exploded": (~is_fine).astype(jnp.float32)}

    def validate(self, state: EnergyState, fixed: Fixed) -> tuple[EnergyState, Metrics]:
        """The energy distance of draws from held-out pictures, the same noise always.

        An energy knows no likelihood, and the contrastive loss says nothing of how good
        it is: near zero before training, and when all is well.
        """
        settings, key = self.settings, rng.stream(self.key, "validate")
        x = self.prepare_held_out(rng.stream(key, "prepare"), fixed.valid)
        params = state.eval_variables["params"]
        prior = self._prior(fixed, params, settings.num_sampling_steps)
        keys = jax.random.split(rng.stream(key, "chains"), len(x))
        start = prior.of_normal(rng.stream(keys, "start"))
        if fixed.starts is not None:
            start = fixed.starts[-len(x) :]

        def draw(chain: tuple[Array, Array]) -> Array:
            one = prior.moved(*(jax.tree.map(lambda leaf: leaf[None], chain)))
            return prior.unfold(one).x[0]

        size = min(VALID_BATCH_SIZE, len(x))
        drawn = jax.lax.map(
            draw, (rng.stream(keys, "langevin"), start), batch_size=size
        )
        distance = energy_distance(drawn, x)
        distance = jnp.where(jnp.isfinite(distance), distance, jnp.inf)
        waited = jnp.where(distance < state.lowest, 0, state.waited + 1)
        is_over = state.has_exploded | (waited >= settings.patience)
        state = state.replace(lowest=jnp.minimum(state.lowest, distance), waited=waited)
        shown = jnp.minimum(distance, jnp.finfo(jnp.float32).max)
        return state, {"loss": shown, "stopped": is_over.astype(jnp.float32)}

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        settings = self.settings
        rate = optimizers.schedule(
            "constant",
            settings.learning_rate,
            settings.num_steps,
            settings.warmup_steps,
        )
        return optimizers.optimizer("adam", rate)

    def _prior(self, fixed: Fixed, params: PyTree, num_steps: int) -> PixelEnergyPrior:
        dynamics = Dynamics(self.settings.step_size, num_steps)
        return dataclasses.replace(fixed.prior, energy_params=params, dynamics=dynamics)

    def _start(
        self, state: EnergyState, fixed: Fixed, key: Array, keys: Array
    ) -> tuple[Array, Array]:
        """Where negatives start: rows of `chains` [B], joint noise [B, D]."""
        fresh = fixed.prior.of_normal(rng.stream(keys, "start"))
        if fixed.starts is not None:
            chosen = jax.random.randint(
                rng.stream(key, "starts"), (len(keys),), 0, len(fixed.starts)
            )
            fresh = fixed.starts[chosen]
        if state.chains is None:
            return jnp.zeros(0, jnp.int32), fresh
        rows = jax.random.choice(
            rng.stream(key, "rows"), len(state.chains), (len(keys),), replace=False
        )
        is_old = jax.random.bernoulli(
            rng.stream(key, "replay"), self.settings.replay_share, (len(keys), 1)
        )
        return rows, jnp.where(is_old, state.chains[rows], fresh)

    def _with_noise(self, key: Array, x: Array) -> Array:
        if not self.settings.noise_std:
            return x
        return x + self.settings.noise_std * jax.random.normal(key, x.shape)
