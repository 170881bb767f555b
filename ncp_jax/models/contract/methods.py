"""The five methods, called on shapes: `encode`, and from `root` down to `decode`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.base import Block, EncoderDecoder
from ncp_jax.models.contract import side_effects
from ncp_jax.models.contract.abstract_calls import (
    Body,
    Fault,
    Outcome,
    failure,
    is_number_or_array,
    trace,
    traced_k_failure,
)
from ncp_jax.models.contract.returned_likelihoods import likelihood_faults
from ncp_jax.models.contract.returned_priors import group_prior_faults
from ncp_jax.models.contract.returned_values import (
    carry_faults,
    encoding_faults,
    posterior_fault,
)
from ncp_jax.models.distributions import Bernoulli

Array = jax.Array
PyTree = Any
NOTHING = Outcome([], None, None)


class Subject(NamedTuple):
    """A VAE whose blocks are sound enough to call its methods."""

    vae: Any
    is_pytree: bool
    blocks: tuple[Block, ...]
    batch_size: int  # one that occurs nowhere else
    x: Any  # [its own B, *data_shape]; None where there is none

    def has(self, method: str) -> bool:
        """Whether the model, or the module of a `FrozenVAE`, has a method."""
        return callable(getattr(getattr(self.vae, "module", self.vae), method, None))

    def trace(self, where: str, body: Body, *args: PyTree) -> Outcome:
        """Runs `body(vae, *args)` on shapes and names the method if it raises."""
        outcome = trace(where, self.vae, self.is_pytree, body, *args)
        if outcome.error is None:
            return outcome
        fault = failure(where, outcome.error)
        return outcome._replace(faults=[*outcome.faults, fault])


def encode(subject: Subject, data_shape: tuple[int, ...]) -> Outcome:
    """Asks `encode` for latents of x [B, *data_shape]."""

    def body(vae: Any, x: Array, key: Array) -> tuple[list[Fault], None]:
        if isinstance(vae, EncoderDecoder):
            posterior = vae.encoder(vae.variables, x)
            if fault := posterior_fault(posterior, x.shape[0]):
                return [fault], None
        faults, out = side_effects.call("encode", vae, "encode", x, key)
        return [*faults, *encoding_faults(out, subject.blocks, x.shape[0])], None

    if not subject.has("encode"):
        return NOTHING
    is_float = jnp.issubdtype(subject.x.dtype, jnp.floating)
    dtype = subject.x.dtype if is_float else jnp.float32
    x = jax.ShapeDtypeStruct((subject.batch_size, *data_shape), dtype)
    return subject.trace("encode", body, x, _key())


def top_down(subject: Subject) -> tuple[list[Outcome], Any]:
    """Asks `root`, `prior` and `absorb` of every block, and `decode`.

    Returns:
      What they came to, and the likelihood's mean as a shape if one was reached.
    """
    outcomes, is_kept = [root(subject)], True
    carry = outcomes[0].out
    if carry is None or not subject.has("root"):
        return outcomes, None
    for b in range(len(subject.blocks)):
        asked = prior(subject, b, carry)
        absorbed = absorb(subject, b, carry, asked.out)
        if is_kept:
            outcomes += [asked, absorbed]
        elif asked.error is None:  # errors may come of the carry, told already
            outcomes.append(asked)
        if absorbed.out is not None:
            is_kept &= not any(carry_faults("", carry, absorbed.out, 0))
            carry = absorbed.out
    decoded = decode(subject, carry)
    if is_kept or decoded.error is None:
        outcomes.append(decoded)
    return outcomes, decoded.out


def root(subject: Subject) -> Outcome:
    """Asks `root`; the outcome holds the carry."""

    def body(vae: Any) -> tuple[list[Fault], PyTree]:
        faults, carry = side_effects.call("root", vae, "root", subject.batch_size)
        if carry is None and not faults:
            faults = [Fault("root", "it returns None", "the carry", "return it")]
        return _only_arrays("root", faults, carry)

    return subject.trace("root", body) if subject.has("root") else NOTHING


def prior(subject: Subject, b: int, carry: PyTree) -> Outcome:
    """Asks `prior` of a block; the outcome holds a draw from the base prior."""
    where, block = f"prior of block {b}", subject.blocks[b]

    def body(vae: Any, k: Any, carry: PyTree, key: Array) -> tuple[Any, Any]:
        faults, out = side_effects.call(where, vae, "prior", b, k, carry)
        more, z = group_prior_faults(where, out, block, subject.batch_size, key)
        return faults + more, z

    return (
        _over_k(subject, where, body, carry, _key())
        if subject.has("prior")
        else NOTHING
    )


def absorb(subject: Subject, b: int, carry: PyTree, z: Any) -> Outcome:
    """Asks `absorb` of a block, twice; the outcome holds the carry."""
    where, shape = f"absorb of block {b}", subject.blocks[b].latent_shape
    if z is None:
        z = jax.ShapeDtypeStruct((subject.batch_size, *shape), jnp.float32)

    def body(vae: Any, k: Any, carry: PyTree, z: Array) -> tuple[Any, Any]:
        faults, out = side_effects.call(where, vae, "absorb", b, k, carry, z)
        return _only_arrays(where, faults, out)

    if not subject.has("absorb"):
        return NOTHING._replace(out=carry)
    first = _over_k(subject, where, body, carry, z)
    if first.out is None and first.faults:
        return first
    faults = [*first.faults, *carry_faults(where, carry, first.out, subject.batch_size)]
    if not first.faults:
        faults += _second_call_faults(subject, where, body, first.out, carry, z)
    return first._replace(faults=faults)


def decode(subject: Subject, carry: PyTree) -> Outcome:
    """Asks `decode`; the outcome holds the mean of the likelihood."""

    def body(vae: Any, carry: PyTree, key: Array) -> tuple[list[Fault], Array | None]:
        faults, out = side_effects.call("decode", vae, "decode", carry)
        shape = None if subject.x is None else subject.x.shape
        more, mean = likelihood_faults(out, shape, subject.batch_size, key)
        return [*faults, *more, *_pixel_faults(out, subject.x)], mean

    if not subject.has("decode"):
        return NOTHING
    return subject.trace("decode", body, carry, _key())


def _over_k(subject: Subject, where: str, body: Body, *args: PyTree) -> Outcome:
    """Calls with a traced k; if that fails, with 0, to know whether k is to blame."""
    outcome = subject.trace(where, body, _traced_k(), *args)
    if outcome.error is None:
        return outcome
    plain = subject.trace(where, lambda vae, *rest: body(vae, 0, *rest), *args)
    if plain.error is not None:
        return outcome
    fault = traced_k_failure(where, outcome.error)
    return plain._replace(faults=[*plain.faults, fault], error=outcome.error)


def _second_call_faults(
    subject: Subject, where: str, body: Body, first: PyTree, *args: PyTree
) -> Iterator[Fault]:
    """Calls `absorb` again: it must return what it returned at first."""
    again = subject.trace(where, body, _traced_k(), *args)
    if again.error is not None:
        yield from again.faults
    elif any(carry_faults(where, first, again.out, subject.batch_size)):
        found = "its second call returns another carry than its first (a side effect)"
        yield Fault(where, found, "a pure method", "return new state in the carry")


def _only_arrays(
    where: str, faults: list[Fault], carry: PyTree
) -> tuple[list[Fault], PyTree]:
    """The faults and the carry, if that is a pytree of arrays; else none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not is_number_or_array(leaf):
            name = f"leaf {jax.tree_util.keystr(path)} of the carry" if path else "it"
            found = f"{name} is a {type(leaf).__name__}"
            remedy = "return arrays in tuples, dicts or registered dataclasses"
            return [*faults, Fault(where, found, "a pytree of arrays", remedy)], None
    return faults, carry


def _pixel_faults(likelihood: Any, x: Any) -> Iterator[Fault]:
    """Whether x has a place in Bernoulli pixels, where x is more than a shape."""
    is_abstract = isinstance(x, jax.ShapeDtypeStruct | jax.core.Tracer)
    if x is None or is_abstract or not isinstance(likelihood, Bernoulli):
        return
    values = np.asarray(x)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        found = f"it holds values from {values.min():.4g} to {values.max():.4g}"
        remedy = "binarise the data, or decode to a likelihood of real x"
        yield Fault("x", found, "0 and 1, as the Bernoulli likelihood asks", remedy)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _traced_k() -> Any:
    return jax.eval_shape(lambda: jnp.arange(1)[0])
