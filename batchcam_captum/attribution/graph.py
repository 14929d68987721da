"""Walks over autograd graphs: which operators lie between two tensors, and which of them every path has to pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge


def node_of(tensor: Tensor) -> Node | None:
    """The operator that made the tensor, a leaf's accumulator, or None where the tensor has no graph."""
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


def edge_of(tensor: Tensor) -> GradientEdge | None:
    """The place of the tensor in its graph; later in-place operations do not move it. None without a graph."""
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def walk(roots: Iterable[Node | None], stop: Collection[Node] = ()) -> Iterator[Node]:
    """Every operator that the roots were computed with, once, the roots included.

    Args:
        roots: where to begin; None is left out.
        stop: operators that are neither given nor looked behind.
    """
    seen: set[Node] = {*stop}
    waiting = [node for node in roots if node is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(later for later, _ in node.next_functions if later is not None)


def between(root: Node | None, ends: Collection[Node]) -> set[Node]:
    """The operators on the paths from the root to the ends, both included; not those on paths that lead elsewhere."""
    return _between(root, ends)[0]


def _between(root: Node | None, ends: Collection[Node]) -> tuple[set[Node], dict[Node, list[Node]]]:
    """The operators, and for each of them those that it feeds."""
    fed: dict[Node, list[Node]] = defaultdict(list)
    nodes = set(walk([root]))
    for node in nodes:
        for later, _ in node.next_functions:
            if later is not None:
                fed[later].append(node)
    found: set[Node] = set()
    waiting = [end for end in ends if end in nodes]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(fed[node])
    return found, fed


def bottlenecks(root: Node | None, leaves: Collection[Node]) -> set[Node]:
    """The operators that every path from the root to the leaves passes, such as the end of a residual block but not its inside.

    Args:
        root: of the scores.
        leaves: of the inputs. Where none of them is reached (integers, a part without a graph) nothing is known, and all
            operators are returned.
    """
    on_path, fed = _between(root, leaves)
    if not on_path or root is None:
        return set(walk([root]))
    # From the root on, an operator once all that it feeds have had their turn. Where all edges that are still open lead to the
    # operator at hand, there is no way around it.
    missing = {node: len(fed[node]) for node in on_path}
    found: set[Node] = set()
    open_edges = 0
    ended = False  # a path, at one of several leaves: what comes later is not on it
    ready = [root]
    while ready:
        node = ready.pop()
        open_edges -= len(fed[node])
        if not open_edges and not ended:
            found.add(node)
        ended = ended or node in leaves
        for later, _ in node.next_functions:
            if later is not None and later in on_path:
                open_edges += 1
                missing[later] -= 1
                if not missing[later]:
                    ready.append(later)
    return found
