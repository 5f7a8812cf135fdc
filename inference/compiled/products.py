"""The matrix products of a graph: taken row by row of their weights, and how much work they all are."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import flop_registry

__all__ = ["by_rows_of_weights", "num_operations"]

_aten = torch.ops.aten
_VIEWS = {_aten.t.default, _aten.transpose.int, _aten.permute.default, _aten.detach.default, _aten.alias.default}
_DTYPES = (torch.float32, torch.float64)


def by_rows_of_weights(graph: GraphModule, weights: list[Node]) -> None:
    r"""Take the products of few rows with a weight as :math:`X W^\top = (W X^\top)^\top`.

    Libraries of linear algebra share a product out among the processor's cores by the rows of what comes out. Of
    `X W'` these are datapoints, so every core reads the whole weight, of which the others have just written their
    shares, in Adam's step: between cores that have no cache in common that takes longer than the product itself. Of
    `W X'` they are the weight's own rows, and a core reads those that it wrote.

    Args:
        graph: changed in place; its values and their layouts stay the same.
        weights: the inputs that are weights.
    """
    known = set(weights)
    for node in list(graph.graph.nodes):
        if node.target is not _aten.mm.default or not _pays(node.meta["val"]):
            continue
        left, right = node.args
        if _source(right) in known and _source(left) not in known:
            _turn(graph, node, left, right)


def num_operations(graph: GraphModule) -> int:
    """About how many a graph takes: those of its products, and ten for every element that another operation makes."""
    total = 0
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        if (count := flop_registry.get(node.target.overloadpacket)) is not None:
            total += count(*map_arg(node.args, _value), **map_arg(node.kwargs, _value), out_val=node.meta["val"])
        elif not any(made.alias_info for made in schema.returns):  # No view.
            made = node.meta["val"]
            parts = made if isinstance(made, tuple | list) else [made]
            total += sum(10 * part.numel() for part in parts if isinstance(part, torch.Tensor))
    return total


def _value(node: Node) -> Any:  # noqa: ANN401
    return node.meta["val"]


def _pays(product: torch.Tensor) -> bool:
    num_rows, num_columns = product.shape
    return num_rows < num_columns and product.dtype in _DTYPES and product.device.type == "cpu"


def _source(node: Node) -> Node:
    """What a tensor is another view of."""
    while node.target in _VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _turn(graph: GraphModule, node: Node, left: Node, right: Node) -> None:
    def call(target: torch._ops.OpOverload, *args: Node, **options: object) -> Node:
        made = graph.graph.call_function(target, args, options)  # type: ignore[arg-type]
        made.meta["val"] = target(*[arg.meta["val"] for arg in args], **options)
        return made

    with graph.graph.inserting_before(node):
        turned = call(_aten.mm.default, call(_aten.t.default, right), call(_aten.t.default, left))
        # In the layout that the rest of the graph was written for; the code that reads it does the turning.
        product = call(_aten.clone.default, call(_aten.t.default, turned), memory_format=torch.contiguous_format)
    node.replace_all_uses_with(product)
    graph.graph.erase_node(node)
