"""A frozen VAE of several groups: its signal coordinates u, then all else, as one z.

Under the VAE's own prior both are standard normal, whatever the groups before are
(`priors.signal_space`).  A prior over u alone, with the rest as it was, is therefore a
prior of the VAE.  `ncp`, `snis`, `ebm` and `flow` are fitted to all groups, each given
those before; the others to the first group alone, as the literature has them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import parallel, rng
from ncp_jax.comparison import fits
from ncp_jax.errors import InputError
from ncp_jax.models.base import Latents, LatentVariableModel, is_deterministic
from ncp_jax.models.distributions import Likelihood
from ncp_jax.priors import conditional, ex_post
from ncp_jax.priors.conditional.groups import Groups
from ncp_jax.priors.ex_post import gaussian
from ncp_jax.priors.ex_post.contract import Density, Encodings, Fit, LatentPrior
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.latents import walk
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training.checkpoints import fingerprint
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp import preparation, signal
from ncp_jax.training.ncp.signal import SignalSettings

Array = jax.Array

NAMES = tuple(n for n in ex_post.NAMES if not ex_post.needs_posterior(n))
MAX_BATCH = 1_000  # examples at a time, while directions are looked for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """A VAE of several groups whose z [B, D] is u [B, D'], then the rest.

    Attributes:
      vae: the model in signal coordinates, one group of them for each of its own.
    """

    vae: SignalVAE

    @property
    def groups(self) -> Groups:
        """Of u: those of the VAE that have a signal direction."""
        widths = tuple(width for width in self.vae.directions.widths if width)
        return Groups(widths, self.vae.context_size)

    @property
    def is_deterministic(self) -> bool:
        """Whether z is a function of x, so that q(z | x) has no density."""
        return is_deterministic(self.vae.vae)

    def encode(self, x: Array, key: Array) -> tuple[Array, Array]:
        """Draws z ~ q(z | x): z [B, D] and log q(z | x) [B], nats."""
        latents, log_q = self.vae.encode(x, key)
        u, *rest = (block.swapaxes(0, 1).reshape(len(x), -1) for block in latents)
        parts = [u[:, self._places()], *rest]
        return jnp.concatenate(parts, axis=1), jnp.sum(log_q, axis=1)

    def decode(self, z: Array) -> Likelihood:
        """p(x | z) of z [B, D]."""
        _, carry = walk(self.vae, self._latents(z), lambda *_: ())
        return self.vae.decode(carry)

    def base(self) -> LatentPrior:
        """What the VAE's own prior is over u: N(0, I)."""
        return self.groups.base

    def posterior(self, x: Array) -> None:
        """q(u | x) is not known: only draws are."""
        del x

    def learned(self, z: Array) -> Array:
        """u [B, D'] of z [B, D], which priors are fitted to."""
        return z[..., : sum(self.groups.widths)]

    def whole(self, prior: LatentPrior) -> LatentPrior:
        """A prior over z that is `prior` over u and leaves the rest as it was."""
        _, *rest = self._sizes()
        whole = WithRest(prior, sum(self.groups.widths), sum(rest))
        return cast(LatentPrior, whole)  # whose density is a property

    def own_latents(self, z: Array) -> Latents:
        """z [B, D] as the VAE has it, per block [num_groups, B, *latent_shape]."""
        return self.vae.to_z(self._latents(z))

    def _latents(self, z: Array) -> Latents:
        """The blocks of the VAE in signal coordinates: [num_groups, B, ...] each."""
        num_u, *rest = self._sizes()
        u = (
            jnp.zeros((len(z), num_u), z.dtype)
            .at[:, self._places()]
            .set(self.learned(z))
        )
        ends = sum(self.groups.widths) + np.cumsum([0, *rest])[:-1]
        starts = np.append(ends, z.shape[1])
        parts = [u, *(z[:, a:b] for a, b in itertools.pairwise(starts))]
        return tuple(
            part.reshape(len(z), block.num_groups, *block.latent_shape).swapaxes(0, 1)
            for part, block in zip(parts, self.vae.blocks, strict=True)
        )

    def _sizes(self) -> list[int]:
        """How many numbers each block of the VAE in signal coordinates has."""
        return [
            block.num_groups * int(np.prod(block.latent_shape))
            for block in self.vae.blocks
        ]

    def _places(self) -> np.ndarray:
        """Where u lies among the padded coordinates of all groups."""
        widths = np.array(self.vae.directions.widths)
        return np.flatnonzero(np.arange(widths.max())[None] < widths[:, None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithRest:
    """A prior over the first coordinates, with N(0, I) over the rest.

    Attributes:
      first: the prior.
      num_first: its coordinates.
      num_rest: the others; may be 0.
    """

    first: LatentPrior
    num_first: int = dataclasses.field(metadata={"static": True})
    num_rest: int = dataclasses.field(metadata={"static": True})

    @property
    def density(self) -> Density:
        """What is known of the density of the first."""
        return self.first.density

    @property
    def rest(self) -> Gaussian:
        """N(0, I)."""
        return gaussian.standard(self.num_rest)

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key."""
        first = self.first.sample(rng.stream(keys, "first"))
        rest = self.rest.sample(rng.stream(keys, "rest"))
        return jnp.concatenate([first, rest], axis=1)

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D], as far as that of the first is known: [B], nats."""
        first = self.first.log_prob(z[:, : self.num_first], key)
        return first + self.rest.log_prob(z[:, self.num_first :])

    def log_z_weights(self, keys: Array) -> Array:
        """Those of the first, where it is known up to log Z."""
        return self.first.log_z_weights(keys)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class OnTop:
    """Fits a prior of one vector to the first group alone; the others stay N(0, I).

    Attributes:
      fit: what fits it.
      width: coordinates of that group.
      num_rest: those of all later ones.
    """

    fit: Fit
    width: int
    num_rest: int

    def _part(self, name: str) -> "OnTop | None":
        part = getattr(self.fit, name, None)
        return None if part is None else dataclasses.replace(self, fit=part)

    # What fits the parts of the prior to that group; None where it has none.
    base = property(lambda self: self._part("base"))
    first = property(lambda self: self._part("first"))
    second = property(lambda self: self._part("second"))

    def over(self, parts: Mapping[str, WithRest]) -> "OnTop":
        """The same, with parts that those of this have fitted."""
        firsts = {part: prior.first for part, prior in parts.items()}
        return dataclasses.replace(self, fit=fits.over(self.fit, firsts))

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> LatentPrior:
        """Returns the prior over u."""
        of_top = Encodings(
            encodings.train[..., : self.width],
            encodings.valid[..., : self.width],
            gaussian.standard(self.width),
        )
        top = WithRest(self.fit(key, of_top, folder), self.width, self.num_rest)
        return cast(LatentPrior, top)


def of(
    vae: LatentVariableModel,
    train: np.ndarray,
    prepare: Prepare,
    key: Array,
    settings: SignalSettings,
    folder: Path | None = None,
) -> Hierarchy:
    """Returns the VAE as the comparison sees it, in directions that are found here.

    Args:
      vae: the frozen model, of several groups.
      train: [N, ...] stored examples.
      prepare: (key, stored) -> x.
      key: PRNG key; consumed here.
      settings: of the directions.
      folder: that keeps them; None for none.

    Raises:
      InputError: a base prior is not `Normal`, no group has signal, or the settings
        ask for ratios that read more than coordinates.
    """
    if settings.is_joint or settings.is_whole:
        raise InputError(
            "compared priors read the coordinates of each group: give directions "
            "is_joint=False, with_maps=False and another context than 'features'"
        )
    mesh = parallel.mesh_of()
    size = min(MAX_BATCH, settings.num_examples, len(train))
    size = max(size // mesh.size, 1) * mesh.size
    find = partial(
        signal.find,
        vae,
        train,
        prepare,
        key,
        settings,
        batch_size=size,
        mesh=mesh,
    )
    path = None
    if folder is not None:
        of_key = jax.random.key_data(key).tolist()
        of_vae = preparation.identity(vae, train, prepare)
        of_train = [fingerprint(train), preparation.named(prepare, train)]
        identity = [of_vae, *of_train, of_key, repr(settings)]
        path = signal.file_in(folder, identity)
    directions = signal.kept(path, find, progress=False)
    if not any(directions.widths):
        raise InputError(
            "no direction of any group has signal above the floor: there is nothing "
            "that priors could be fitted to; lower the floor of the directions"
        )
    directions.check(vae.blocks)
    return Hierarchy(SignalVAE(vae, directions, settings.num_earlier))


def fits_of(
    groups: Groups,
    priors: Mapping[str, Mapping[str, Any] | Callable[..., Any]],
    others: Mapping[str, Any] | None = None,
) -> dict[str, Fit]:
    """Returns what fits each prior, by the name of its row.

    Args:
      groups: of the coordinates.
      priors: by name changes of its settings, or what fits it to all of u.
      others: the changes of priors that these are built on; None for `priors`.

    Raises:
      InputError: there is no such prior or setting, it needs q(z | x), two rows have
        one name, or a row of the first group is built on a prior whose settings were
        given for all groups.
    """
    top, *later = groups.widths
    found: dict[str, Fit] = {}
    others = priors if others is None else others
    of_all = {n for n in conditional.NAMES if others.get(n)}
    of_one = {n: how for n, how in others.items() if n not in conditional.NAMES}
    for name, how in priors.items():
        if callable(how):
            found[name] = how
        elif name in conditional.NAMES:
            found[name] = conditional.settings_of(name, groups, how)
        elif name == "gaussian":
            found[name] = ex_post.settings_of(name, how)
        else:
            check_names([name])
            if given := of_all & ex_post.built_on(name):
                raise InputError(
                    f"priors: the settings of {min(given)!r} are those of all groups, "
                    f"and {name!r} is of the first alone: say what it is built on "
                    f"among the settings of {name!r}, as its base, first or second"
                )
            row = f"{name}_top"
            if row in priors:
                raise InputError(
                    f"priors: the row of {name!r} is called {row!r}, as another prior "
                    "is: give that one another name"
                )
            fit = ex_post.settings_of(name, how, of_one)
            found[row] = OnTop(fit, top, sum(later))
    return found


def check_names(names: Sequence[str]) -> None:
    """Refuses priors that signal coordinates cannot have.

    Raises:
      InputError: naming the prior.
    """
    if any(map(ex_post.needs_posterior, names)):
        raise InputError(
            "vamp is a mixture of q(z | x) of one latent vector, which a VAE of "
            "several groups does not say of its signal coordinates: leave vamp out "
            "(gmm needs draws alone)"
        )


def about(model: Hierarchy) -> str:
    """What the results say of how the groups were treated."""
    widths = ", ".join(map(str, model.vae.directions.widths))
    return (
        f"signal coordinates of each group: {widths}. {', '.join(conditional.NAMES)}: "
        "all groups, each given those before; names that end in _top: the first group "
        "with a coordinate alone, the others as under the VAE's own prior"
    )
