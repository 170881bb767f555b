"""Counts the arithmetic of matrix products and convolutions, on any backend.

XLA's own count takes the body of a loop once and knows nothing of what it hands to
libraries; this one reads the program before XLA does.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Returns the multiplications and additions of all products and convolutions.

    A loop counts as often as it runs; of the branches of a `cond`, the costliest; a
    `while` whose number of rounds nobody knows counts once.

    Args:
      function: traced, not computed.
      *args: arrays or their shapes.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (axes, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in axes)
        return 2 * terms * equation.outvars[0].aval.size
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * kernel.size // features * equation.outvars[0].aval.size
    inner = [_of_jaxpr(each) for each in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _jaxprs(params: dict[str, Any]) -> list[Jaxpr]:
    """Those that an equation calls; rules for its derivatives are functions."""
    found: list[Jaxpr] = []
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                found.append(each.jaxpr)
            elif isinstance(each, Jaxpr):
                found.append(each)
    return found
