"""Signal directions: where q(z_k | z_<k, x) moves with x, found once for a frozen VAE.

With e_k = (z_k - mean) / std of p(z_k | z_<k), flattened, e_k ~ N(0, I) under the prior
whatever z_<k is, and so is u_k = U_k^T e_k for orthonormal U_k [D, m].  The posterior
moves e_k in few directions; in the others q and p share their noise, and a classifier
that reads it drowns.  U_k holds those few.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.base import Block, LatentVariableModel
from ncp_jax.priors import hashed_arrays, signal_covariance
from ncp_jax.priors.signal_covariance import Spectrum, choose_width
from ncp_jax.priors.signal_sums import Batch, Prepare, group_size

Array = jax.Array
ARRAYS = ("basis", "spectrum", "total", "noise_floor")
FEATURES = ("feature_basis", "feature_shift")
REMEDY = "delete it and fit them again"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Directions:
    """The directions of every group, padded to one number m, and their spectrum.

    Variances are in units of the prior's, which is 1 in every direction of e_k.

    Attributes:
      basis: per block [num_groups, D, m] float32; orthonormal columns, those from the
        group's own width on are zero.  D is the product of the latent shape.
      spectrum: per block [num_groups, S] leading eigenvalues of the signal E[m m^T],
        descending; m is the posterior mean of e.
      total: per block [num_groups] its trace.
      noise_floor: per block [num_groups] the eigenvalue below which nothing counts.
      widths: of each group, in the model's order, how many directions it uses; 0 for a
        group without signal.
      total_stderr: per block [num_groups] of the trace; empty where nobody measured it.
      num_examples: from which the spectrum is; 0 where nobody says.
      feature_basis: per block [num_groups, F, c] directions of the decoder's feature,
        of `feature_directions.fit_features`; empty where no ratio reads it.
      feature_shift: per block [num_groups, c] the mean feature in them.
    """

    basis: tuple[Array, ...]
    spectrum: tuple[Array, ...]
    total: tuple[Array, ...]
    noise_floor: tuple[Array, ...]
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    total_stderr: tuple[Array, ...] = ()
    num_examples: int = dataclasses.field(default=0, metadata={"static": True})
    feature_basis: tuple[Array, ...] = ()
    feature_shift: tuple[Array, ...] = ()

    @property
    def num_directions(self) -> int:
        """m, of the basis: the widest group's width, at least 1."""
        return self.basis[0].shape[-1]

    def check(self, blocks: Sequence[Block]) -> None:
        """Refuses the directions of a VAE with other groups.

        Raises:
          InputError: if numbers or sizes of the groups differ.
        """
        found = [basis.shape[:2] for basis in self.basis]
        expected = [(block.num_groups, group_size(block)) for block in blocks]
        if found != expected:
            raise InputError(
                f"signal directions of groups [number, size] {found}, but the VAE has "
                f"{expected}: fit them again to this VAE"
            )

    def chosen(self, groups: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Those of some groups, None for all, that have a direction; None for all K.

        None at all, (), where no group has signal: the prior is the base prior.
        """
        asked = range(len(self.widths)) if groups is None else groups
        found = tuple(k for k in asked if self.widths[k])
        return None if len(found) == len(self.widths) else found

    def digest(self) -> str:
        """The sha256 of all arrays and widths, in hexadecimal."""
        return hashed_arrays.digest(_arrays(self))

    def save(self, path: str | Path) -> None:
        """Writes an npz with the sha256 of every array; a kill leaves no half file."""
        hashed_arrays.write(path, _arrays(self))

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Reads what `save` wrote, and compares every array with its sha256.

        Raises:
          InputError: a missing, damaged or changed file.
        """
        arrays = hashed_arrays.read(path, REMEDY)
        blocks = range(sum(name.startswith("basis/") for name in arrays))
        try:
            has_error = "num_examples" in arrays  # older files have not
            names = (*ARRAYS, *(("total_stderr",) if has_error else ()))
            if "feature_basis/0" in arrays:
                names += FEATURES
            fields = {
                field: tuple(jnp.asarray(arrays[f"{field}/{b}"]) for b in blocks)
                for field in names
            }
            return cls(
                **fields,
                widths=tuple(map(int, arrays["widths"])),
                num_examples=int(arrays.get("num_examples", 0)),
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} holds other arrays than signal directions ({error}): {REMEDY}"
            ) from error


def fit_directions(
    vae: LatentVariableModel,
    batches: Iterable[Batch],
    prepare: Prepare,
    key: Array,
    *,
    share: float = 0.95,
    floor: float = 0.015,
    cap: int = 32,
    max_exact_dim: int = 1024,
    num_passes: int = 3,
    num_draws: int = 4,
    use_means: bool | None = None,
    is_centred: bool = False,
    mesh: Mesh | None = None,
) -> Directions:
    """Finds the leading eigenvectors of every group's signal, E[m_k m_k^T].

    m_k is the posterior mean of e_k; what is estimated, and from what, says
    `signal_covariance.leading`.

    A group's width is the smallest number of directions that hold `share` of the sum
    of its (2 `cap` leading) eigenvalues above the noise floor.  q can change the
    variance of a direction of eigenvalue s by about s, which is worth s^2 / 4 nats:
    6e-5 at the floor of 0.015.

    Args:
      vae: a frozen model with `Normal` base priors.
      batches: (stored examples [B, ...], mask [B], False for padding), all of one
        shape, as of `datasets.padded_batches`.  Kept, and gone through `num_passes`
        times.
      prepare: (key, stored) -> x; hashable, and of one example at a time.
      key: PRNG key; consumed here.
      share: of the signal, in (0, 1].
      floor: the smallest eigenvalue that counts, in units of the prior's variance; 0
        or more.
      cap: the largest width, at least 1.
      max_exact_dim: groups of more latent variables D never have their [D, D]
        covariance formed: a randomised range finder (Halko et al., 2011) takes its
        place.
      num_passes: over the examples, at least 2, where the range finder is needed; each
        after the second sharpens it.  One pass otherwise.
      num_draws: z ~ q(z | x) of each x, at least 2, where there are no posterior means.
      use_means: whether the signal is that of posterior means, or what draws of one x
        share; None for the first where `vae.encode(x, None)` gives means.
      is_centred: whether a shift that all x share counts for nothing.
      mesh: the devices that share a batch; None for one.

    Returns:
      The directions; the same, up to rounding, for any number of devices and any batch
      size.

    Raises:
      InputError: too few passes or draws, fewer than two examples, a base prior that is
        not `Normal`, or encodings that are not finite.
    """
    spectra = signal_covariance.leading(
        vae,
        batches,
        prepare,
        key,
        num_leading=2 * cap,
        max_exact_dim=max_exact_dim,
        num_passes=num_passes,
        num_draws=num_draws,
        use_means=use_means,
        is_centred=is_centred,
        mesh=mesh,
    )
    return _chosen(spectra, share, floor, cap)


def _chosen(
    spectra: Sequence[Spectrum], share: float, floor: float, cap: int
) -> Directions:
    """Keeps as many eigenvectors of each group as its spectrum asks for."""
    floors = [np.maximum(spectrum.noise_edge, floor) for spectrum in spectra]
    widths = [
        [
            choose_width(*each, share, cap)
            for each in zip(s.values, of_block, strict=True)
        ]
        for s, of_block in zip(spectra, floors, strict=True)
    ]
    return Directions(
        basis=_padded([spectrum.vectors for spectrum in spectra], widths),
        spectrum=_float32(spectrum.values for spectrum in spectra),
        total=_float32(spectrum.total for spectrum in spectra),
        noise_floor=_float32(floors),
        widths=tuple(width for of_block in widths for width in of_block),
        total_stderr=_float32(spectrum.total_stderr for spectrum in spectra),
        num_examples=spectra[0].num_examples,
    )


def random_directions(
    vae: LatentVariableModel, key: Array, num: int = 32
) -> Directions:
    """Orthonormal directions that nothing was fitted to, for benchmarks.

    Args:
      vae: the model; only its blocks are read.
      key: PRNG key; consumed here.
      num: m; a group with fewer latent variables than that uses them all.
    """
    columns, widths = [], []
    for b, block in enumerate(vae.blocks):
        width = min(num, group_size(block))
        shape = (block.num_groups, group_size(block), width)
        noise = jax.random.normal(rng.at_step(rng.stream(key, "directions"), b), shape)
        columns.append(np.linalg.qr(np.asarray(noise, np.float64))[0])
        widths.append([width] * block.num_groups)
    nothing = [np.zeros(block.num_groups) for block in vae.blocks]
    return Directions(
        basis=_padded(columns, widths),
        spectrum=_float32(np.zeros((len(zeros), 1)) for zeros in nothing),
        total=_float32(nothing),
        noise_floor=_float32(nothing),
        widths=tuple(width for of_block in widths for width in of_block),
    )


def _padded(
    columns: Sequence[np.ndarray], widths: Sequence[Sequence[int]]
) -> tuple[Array, ...]:
    """Keeps each group's own columns of [num_groups, D, .] and fills up with zeros."""
    num = max(1, *(width for of_block in widths for width in of_block))
    bases = []
    for of_block, own in zip(columns, widths, strict=True):
        basis = np.zeros((*of_block.shape[:2], num), np.float32)
        for k, width in enumerate(own):
            basis[k, :, :width] = of_block[k, :, :width]
        bases.append(jnp.asarray(basis))
    return tuple(bases)


def _float32(arrays: Iterable[np.ndarray]) -> tuple[Array, ...]:
    return tuple(jnp.asarray(np.asarray(array, np.float32)) for array in arrays)


def _arrays(directions: Directions) -> dict[str, np.ndarray]:
    arrays = {
        f"{field}/{b}": np.asarray(array)
        for field in (*ARRAYS, "total_stderr", *FEATURES)
        for b, array in enumerate(getattr(directions, field))
    }
    arrays["widths"] = np.asarray(directions.widths, np.int64)
    if directions.num_examples:  # files from before it was kept have the same digest
        arrays["num_examples"] = np.asarray(directions.num_examples, np.int64)
    return arrays
