"""What of a traced net draws from torch's own generator, so that no seed of a search repeats it."""

from __future__ import annotations

from torch import fx, nn

from hwnas.nn.blocks import Dropout

CALLS = frozenset(
    ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout",
     "rrelu", "rand", "randn", "randint", "randperm", "normal", "rand_like", "randn_like", "randint_like", "bernoulli",
     "multinomial", "bernoulli_", "normal_", "uniform_", "random_", "exponential_", "stochastic_depth",
     "gumbel_softmax")
)  # fmt: skip
"""Functions and methods of tensors."""


def unseeded(traced: fx.GraphModule) -> str:
    """The first layer or call that draws, by the name that a user would recognise; empty where there is none."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            layer = traced.get_submodule(node.target)
            if isinstance(layer, nn.modules.dropout._DropoutNd | nn.RReLU) and not isinstance(layer, Dropout):
                return f"{node.target} ({type(layer).__name__})"
        elif node.op in ("call_function", "call_method"):
            called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if called in CALLS:
                return str(called)
    return ""
