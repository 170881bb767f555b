"""From a user's examples to the model's x, where they do not say how themselves."""

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.data import pixels
from ncp_jax.data.datasets import binarize
from ncp_jax.errors import InputError
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.models.check import check
from ncp_jax.models.distributions import Bernoulli
from ncp_jax.priors.latents import log_prior
from ncp_jax.training.checkpoint_records import described, short_hash
from ncp_jax.training.checkpoints import fingerprint, identity_of
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp.returned_numbers import check_numbers

Array = jax.Array

NUM_CHECKED = 64  # examples whose values are looked at
ROWS_AT_A_TIME = 512  # where all are
AS_FLOATS = "give x.astype(np.float32), and no prepare"


def as_stored(key: Array, stored: Array) -> Array:
    """x = the stored examples themselves."""
    del key
    return stored


def to_unit(key: Array, stored: Array) -> Array:
    """x = pictures in [0, 1] from uint8 ones."""
    del key
    return pixels.quantize(stored, 8)


def checked(
    vae: LatentVariableModel, stored: np.ndarray, prepare: Prepare | None
) -> Prepare:
    """Returns how x is made, once the VAE is known to take it.

    Args:
      vae: a frozen model.
      stored: [N, *data_shape] examples.
      prepare: the user's own, (key, stored) -> x; None for the default: real numbers
        stay, uint8 pictures become [0, 1].

    Raises:
      InputError: the examples or the VAE are not as they should be, or the numbers that
        it makes of a few examples; pictures for a
        binary likelihood, which somebody has to binarise; or zeros and ones as uint8,
        which as grey values are all but black.
    """
    if prepare is None:
        prepare = _default(stored)
    is_grey = prepare in (to_unit, binarize) and stored.dtype == np.uint8
    if is_grey and stored.max() == 1:
        raise InputError(
            "the examples are zeros and ones of type uint8, which holds grey values "
            f"from 0 to 255: {AS_FLOATS}"
        )
    try:
        hash(prepare)  # compiled functions are found again by it
    except TypeError as error:
        raise InputError(
            f"prepare, a {type(prepare).__name__}, has no hash ({error}): give a "
            "function, or a dataclass with frozen=True"
        ) from error
    key, few = jax.random.key(0), jnp.asarray(stored[:NUM_CHECKED])
    try:
        jax.eval_shape(prepare, key, few)
    except InputError:
        raise
    except Exception as error:  # of any kind: the function is the user's
        said = str(error).partition("\n")[0]
        raise InputError(
            "prepare must be a function (key, stored) -> x that JAX can compile; it "
            f"raises {type(error).__name__}: {said}"
        ) from error
    x = prepare(key, few)
    check(vae, x)
    is_binary = isinstance(_likelihood(vae, x), Bernoulli)
    if prepare is to_unit and is_binary:
        raise InputError(
            "the examples are uint8 and the VAE's likelihood is Bernoulli, of zeros "
            "and ones: give prepare=ncp_jax.binarize, which draws them afresh at every "
            "use, or a prepare(key, stored) of your own"
        )
    check_numbers(vae, x)
    if is_binary and not bool(jnp.all((x == 0) | (x == 1))):
        print(
            "the examples hold numbers between 0 and 1, and the VAE's likelihood is "
            "Bernoulli, of zeros and ones: likelihoods are then no log-probabilities. "
            "prepare=ncp_jax.binarize draws zeros and ones from uint8 pictures"
        )
    return prepare


def find_fault(
    vae: LatentVariableModel, prepare: Prepare, **splits: np.ndarray
) -> None:
    """Looks at what a VAE makes of every example, once something was not finite.

    Args:
      vae: a frozen model.
      prepare: (key, stored) -> x.
      **splits: [N, *data_shape] examples by name.

    Raises:
      InputError: of some it makes NaN, or no density.
    """
    for name, stored in splits.items():
        for first in range(0, len(stored), ROWS_AT_A_TIME):
            rows = jnp.asarray(stored[first : first + ROWS_AT_A_TIME])
            try:
                check_numbers(vae, prepare(jax.random.key(0), rows))
            except InputError as error:
                where = f"{name}[{first}:{first + len(rows)}]"
                raise InputError(f"{where}: {error}") from error


def examples(name: str, array: np.ndarray | Array) -> np.ndarray:
    """Returns examples as a NumPy array [N, ...].

    Raises:
      InputError: there are none, or they are no numbers that a model can read, or not
        finite.
    """
    found = np.asarray(array)
    if found.dtype == np.float64:  # NumPy's default is not JAX's
        found = found.astype(np.float32)
    kind = found.dtype.kind
    if found.ndim < 1 or not len(found) or kind not in "fiub":
        raise InputError(
            f"{name} must be an array [N, *data_shape] of at least one example; got "
            f"shape {found.shape} and type {found.dtype}"
        )
    for first in range(0, len(found), ROWS_AT_A_TIME):
        is_finite = np.isfinite(found[first : first + ROWS_AT_A_TIME])
        if not is_finite.all():
            row = first + int(np.argwhere(~is_finite)[0, 0])
            raise InputError(f"{name}[{row}] holds numbers that are not finite")
    return found


def splits(**arrays: np.ndarray | Array) -> dict[str, np.ndarray]:
    """Returns the examples of several splits, which one `prepare` is to read.

    Raises:
      InputError: as of `examples`, or they are of different shapes or types.
    """
    found = {name: examples(name, array) for name, array in arrays.items()}
    first, *others = found
    shape, dtype = found[first].shape[1:], found[first].dtype
    for name in others:
        if (found[name].shape[1:], found[name].dtype) != (shape, dtype):
            raise InputError(
                f"{name} holds examples of shape {found[name].shape[1:]} and type "
                f"{found[name].dtype}, {first} of {shape} and {dtype}"
            )
    return found


def identity(vae: LatentVariableModel, stored: np.ndarray, prepare: Prepare) -> str:
    """A hash that tells a VAE from others: of its class, settings and arrays.

    One without arrays, whose weights JAX does not see, is known by what it makes of a
    few examples.

    Args:
      vae: the model.
      stored: [N, *data_shape] examples.
      prepare: (key, stored) -> x.
    """
    parts = identity_of(vae)
    if not jax.tree.leaves(vae):
        key = jax.random.key(0)
        x = prepare(key, jnp.asarray(stored[:NUM_CHECKED]))
        latents, log_q = vae.encode(x, key)
        log_likelihood = vae.decode(log_prior(vae, latents)[1]).log_prob(x)
        parts.append(fingerprint((latents, log_q, log_likelihood)))
    return f"{type(vae).__qualname__} {short_hash(parts)}"


def named(prepare: Prepare, stored: np.ndarray) -> str:
    """What tells a `prepare` from others: its name, the values that it shows to carry.

    And a hash of what it makes of a few examples, since a method, a default or a
    compiled function carries values that nobody sees.

    Args:
      prepare: (key, stored) -> x.
      stored: [N, *data_shape] examples.
    """
    x = prepare(jax.random.key(0), jnp.asarray(stored[:NUM_CHECKED]))
    name = getattr(prepare, "__qualname__", None)
    if name is None:  # a partial, or an object that is called
        return f"{described(prepare)} {fingerprint(x)}"
    cells = getattr(prepare, "__closure__", None) or ()
    held = [described(cell.cell_contents) for cell in cells]
    return f"{name} {held} {fingerprint(x)}" if held else f"{name} {fingerprint(x)}"


def _default(stored: np.ndarray) -> Prepare:
    if np.issubdtype(stored.dtype, np.floating):
        return as_stored
    if stored.dtype == np.uint8:
        return to_unit
    of_type = f"examples of type {stored.dtype}"
    if set(np.unique(stored)) <= {0, 1}:
        raise InputError(f"{of_type} are zeros and ones: {AS_FLOATS}")
    raise InputError(
        f"{of_type} need prepare=, a function (key, stored) -> x; float32 goes in as "
        "it is, uint8 as x / 255"
    )


def _likelihood(vae: LatentVariableModel, x: Array) -> object:
    """What `decode` returns, abstractly."""

    def decode(x: Array) -> object:
        latents = vae.encode(x, jax.random.key(0)).latents
        return vae.decode(log_prior(vae, latents)[1])

    return jax.eval_shape(decode, x)
