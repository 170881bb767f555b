"""How an energy of pictures learns, and how its draws are made."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the energy learns.

    Attributes:
      channels: of its convolutions.
      hidden_dims: widths of its dense layers.
      step_size: lambda, in joint noise.
      num_langevin_steps: of an update's negatives.
      num_sampling_steps: of draws, and of those that validations judge.
      replay_share: of the negatives that go on from where earlier ones have ended; the
        others start at the prior.  0 for none.
      num_chains: that are kept for that.
      energy_penalty: weight of the mean square of the energies.
      spectral_penalty: weight of the sum of the kernels' largest singular values.
      noise_std: of normal noise on both kinds of pictures while E learns; 0 for none.
      batch_size: pictures of an update, and as many negatives.
      num_steps: updates.
      learning_rate: of Adam, constant after a warm-up.
      warmup_steps: of a linear rise from 0.
      ema_decay: of the average of the weights, which is what draws; 0 for none.
      max_energy: nats; a mean energy beyond it counts as exploded.
      num_valid: held-out pictures, and as many draws, of a validation.
      patience: validations without a lower distance, then training ends.
      steps_per_eval: updates between validations.
      steps_per_dispatch: updates of one compiled call.
    """

    channels: tuple[int, ...] = (8, 16, 32)
    hidden_dims: tuple[int, ...] = (64,)
    step_size: float = 0.03
    num_langevin_steps: int = 16
    num_sampling_steps: int = 24
    replay_share: float = 0.0
    num_chains: int = 2_000
    energy_penalty: float = 0.1
    spectral_penalty: float = 0.01
    noise_std: float = 0.03
    batch_size: int = 64
    num_steps: int = 2_000
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    ema_decay: float = 0.99
    max_energy: float = 1e3
    num_valid: int = 1_000
    patience: int = 5
    steps_per_eval: int = 50
    steps_per_dispatch: int = 10
