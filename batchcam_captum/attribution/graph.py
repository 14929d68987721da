"""Walks over autograd graphs: the nodes between two tensors, and those that every path passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge


def node_of(tensor: Tensor) -> Node | None:
    """Return the node that made a tensor, the accumulator of a leaf, or None without a graph."""
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


def edge_of(tensor: Tensor) -> GradientEdge | None:
    """Return the place of a tensor in its graph, which later in-place operations do not move; None without a graph."""
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def walk(roots: Iterable[Node | None], stop: Collection[Node] = ()) -> Iterator[Node]:
    """Yield each node that the roots were computed with once, the roots included.

    Args:
        roots: where to begin; None is skipped.
        stop: nodes that are neither yielded nor followed.
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
    """Return the nodes on the paths from the root to the ends, both included."""
    return _between(root, ends)[0]


def _between(root: Node | None, ends: Collection[Node]) -> tuple[set[Node], dict[Node, list[Node]]]:
    """Return the nodes, and for each of them those that it feeds."""
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
    """Return the nodes that every path from the root to the leaves passes, such as the end of a residual block, not its inside.

    Args:
        root: of the scores.
        leaves: of the inputs. If none of them is reached (integers, a part without a graph), all nodes are returned.
    """
    on_path, fed = _between(root, leaves)
    if not on_path or root is None:
        return set(walk([root]))
    # From the root on, each node after all that it feeds. If all open edges lead to the node at hand, no path bypasses it.
    missing = {node: len(fed[node]) for node in on_path}
    found: set[Node] = set()
    open_edges = 0
    ended = False  # at one of several leaves, whose path has no later nodes
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
