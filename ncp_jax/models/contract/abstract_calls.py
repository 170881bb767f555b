"""Calls of a VAE's methods on shapes alone, and what to say of one that fails.

`models.check` asks with it; nothing is compiled and no number is computed.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
MAX_TEXT = 200  # characters of another library's message
PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83)


class Fault(NamedTuple):
    """One thing that is wrong, for one sentence."""

    where: str  # the method, and the block where it has a part in it
    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        """The sentence."""
        return f"{self.where}: {self.found}; expected {self.expected}; {self.remedy}."


# of a model and abstract arrays: the faults, and a pytree of arrays for later calls
Body = Callable[..., tuple[Sequence[Fault], PyTree]]


class Outcome(NamedTuple):
    """What an abstract call came to."""

    faults: list[Fault]
    out: PyTree  # of `ShapeDtypeStruct`; None where the call raised
    error: Exception | None  # that it raised
    where: str = ""  # the method, and the block where it has a part in it
    inputs: tuple[weakref.ref, ...] = ()  # traced arrays that should not outlive it


def trace(
    where: str, model: Any, is_pytree: bool, body: Body, *args: PyTree
) -> Outcome:
    """Runs `body(model, *args)` on shapes, all that the model holds being traced.

    Args:
      where: the method and the block.
      model: any object.
      is_pytree: whether its leaves can be traced; if not, it is closed over.
      body: what to run; its faults survive an error after it.
      *args: pytrees of arrays or `ShapeDtypeStruct`.
    """
    faults: list[Fault] = []
    inputs: list[weakref.ref] = []

    def run(traced: PyTree, *args: PyTree) -> PyTree:
        inputs.extend(map(weakref.ref, jax.tree.leaves((traced, args))))
        seen, out = body(traced[0] if is_pytree else model, *args)
        faults.extend(seen)
        return out

    try:
        out = jax.eval_shape(run, [model] if is_pytree else [], *args)
    except Exception as error:
        return Outcome(faults, None, error, where)
    return Outcome(faults, out, None, where, tuple(inputs))


def failure(where: str, error: Exception) -> Fault:
    """Says which method raised what."""
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return leak_fault(where)
    name = type(error).__name__
    if name in ("FrozenInstanceError", "SetAttributeFrozenModuleError"):
        return Fault(
            where,
            f"it assigns to an attribute of the model, {text_of(error)}",
            "a method without side effects",
            "return new state in the carry",
        )
    if name == "ModifyScopeVariableError":
        return Fault(
            where,
            f"it changes a variable of the model, {text_of(error)}",
            "a frozen model",
            "use running statistics instead of updating them",
        )
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return Fault(
            where,
            "it makes an array of NumPy's or PyTorch's of a traced one",
            "a function of JAX",
            "compute by jax.numpy, or call what is none of JAX by jax.pure_callback, "
            "as docs/recipes/torch_vae.py does",
        )
    return Fault(
        where,
        f"it raises {text_of(error)}",
        "a result for any batch size, computed from shapes under `jit`",
        "mend the method, or what it was given",
    )


def leak_fault(where: str) -> Fault:
    """Says that a method keeps what it was called with."""
    return Fault(
        where,
        "it keeps a traced array after it returned (a side effect)",
        "a pure method",
        "append to no list outside it and return new state in the carry",
    )


def traced_k_failure(where: str, error: Exception) -> Fault:
    """Says what of a method stands against a traced k, where k = 0 serves it."""
    remedy = (
        "make no name, f-string or key of k: stack the groups' variables and index them"
    )
    use = "uses k as a Python value"
    if isinstance(error, jax.errors.TracerBoolConversionError):
        use = "asks for k in an `if`"
        remedy = "choose with jnp.where or jax.lax.cond"
    elif isinstance(
        error,
        jax.errors.TracerIntegerConversionError | jax.errors.ConcretizationTypeError,
    ):
        use = "uses k as a Python index or int"
        remedy = "index a stacked jax array, or choose with jax.lax.switch"
    elif "Tracer" in str(error):
        use = "writes k into a string"
    return Fault(
        where,
        f"it {use} (k = 0 serves, a traced k raises {text_of(error)})",
        "k as an int32 scalar that may be traced",
        remedy,
    )


def text_of(error: Exception) -> str:
    """The kind of an error and the first line of its message, shortened."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".rstrip(": .;")
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT].rstrip() + " ..."


def free_batch_size(*trees: PyTree) -> int:
    """A prime that is no size of any array or number in the trees.

    A result of wrong layout then cannot look right by chance.
    """
    taken: set[int] = set()
    for leaf in jax.tree.leaves(trees):
        taken |= {leaf} if isinstance(leaf, int) else set(np.shape(leaf))
    free = [p for p in PRIMES if p not in taken and 2 * p not in taken]
    return free[0] if free else 2 * max(taken) + 1


def shown(value: Any, batch_size: int) -> str:
    """Dtype and shape of an array, as float32[B, 4]; of another value, its type."""
    if not is_array(value):
        return f"a {type(value).__name__}"
    return f"{value.dtype}{shown_shape(value.shape, batch_size)}"


def shown_shape(shape: Sequence[int], batch_size: int) -> str:
    """A shape with B in the place of the batch size."""
    sizes = ("B" if size == batch_size else str(size) for size in shape)
    return f"[{', '.join(sizes)}]"


def is_array(value: Any) -> bool:
    """Whether it has a shape and a dtype that JAX takes."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def is_floating(value: Any) -> bool:
    """Whether it is an array of floats."""
    return is_array(value) and bool(jnp.issubdtype(value.dtype, jnp.floating))


def is_number_or_array(value: Any) -> bool:
    """Whether `jit` takes it as a leaf."""
    return is_array(value) or isinstance(value, bool | int | float | complex)
