"""Model FLOPs: what the matrix products and convolutions of a function need, counted in its jaxpr by their shapes.

A product of m x k and k x n is 2mkn; a convolution 2 k^2 c_in c_out h w, and so is each of the two of its backward
pass. Nothing else is counted, and nothing twice: dead code is dropped, rematerialisation must be off. What is restated
to take fewer products, or more (RESTATED), counts as it is defined.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from vqgan_jax.compat import ClosedJaxpr, Jaxpr, dce_jaxpr

# Functions of `nn` by their names, with the products of their definition for each that they take.
RESTATED = {"upsample_convolve_backward": 9 / 4, "pair_features": 1 / 2, "half_sums": 0.0}


def count(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of a function of arrays or of their shapes; of a `cond` the dearest branch, of a `while` one round."""
    closed = jax.make_jaxpr(function)(*args)
    return jaxpr_flops(closed.jaxpr)


def jaxpr_flops(jaxpr: Any) -> float:
    """FLOPs of what the outputs of a jaxpr need."""
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return float(sum(equation_flops(equation) for equation in live.eqns))


def equation_flops(equation: Any) -> float:
    """FLOPs of one operation, with those of the functions it calls."""
    name, params = equation.primitive.name, equation.params
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, features = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        # Zeros that a stride's backward pass puts between the pixels are not multiplied.
        return 2.0 * out * math.prod(kernel) / kernel[features] / math.prod(params["lhs_dilation"])
    inner = [jaxpr_flops(jaxpr) for jaxpr in called(params)]
    if not inner:
        return 0.0
    if name == "jit" and params["name"] in RESTATED:
        return RESTATED[params["name"]] * sum(inner)
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def called(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an operation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
