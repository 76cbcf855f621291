"""llama.cpp's graph allocator, replayed: how large a buffer a sequence of tensors needs.

Source: ggml/src/ggml-alloc.c. A tensor takes the smallest free hole that holds it, else the room
at the end; it is freed after its last reader. An element-wise operation takes over the memory of
an operand of its own layout that nobody else reads. Holes that nothing fits are why the buffer is
larger than what is alive at any one time, so the formula has to replay them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Tensor:
    """One node of a graph. `size` is in any unit; `root` is what a view looks into.

    `in_place`: the operation may take over an operand's memory.
    """

    size: int
    sources: tuple[Tensor, ...] = ()
    root: Tensor | None = None
    in_place: bool = False
    readers: int = 0
    views: int = 0
    offset: int | None = None


@dataclass(slots=True)
class Graph:
    """Tensors in the order in which they are computed."""

    nodes: list[Tensor] = field(default_factory=list)

    def made(self, size: int, *sources: Tensor) -> Tensor:
        """A tensor with memory of its own."""
        return self._add(Tensor(size, sources))

    def changed(self, size: int, *sources: Tensor) -> Tensor:
        """An element-wise result, in the place of an operand where that may be."""
        return self._add(Tensor(size, sources, in_place=True))

    def view(self, of: Tensor, size: int | None = None) -> Tensor:
        """All of a tensor reshaped, or with a `size` a part of it."""
        return self._add(Tensor(size or of.size, (of,), of.root or of))

    def read(self, *sources: Tensor) -> None:
        """A result that goes elsewhere: into the KV cache."""
        self._add(Tensor(0, sources))

    def _add(self, tensor: Tensor) -> Tensor:
        self.nodes.append(tensor)
        return tensor


def buffer_size(graph: Graph) -> int:
    """Units of memory that the graph needs; each graph can be asked once."""
    for node in graph.nodes:
        if node.root is not None:
            node.root.views += 1
        for source in node.sources:
            source.readers += 1
    room = _Room()
    for node in graph.nodes:
        if node.root is None and node.size:
            taken = _taken_over(node) if node.in_place else None
            node.offset = room.take(node.size) if taken is None else taken
        for source in node.sources:
            source.readers -= 1
            if source.readers or source.views:
                continue
            dead: Tensor | None = source
            if source.root is not None:
                source.root.views -= 1
                dead = None if source.root.views or source.root.readers else source.root
            if dead is not None and dead.offset is not None:
                room.free(dead.offset, dead.size)
                dead.offset = None
    return room.most


def _taken_over(node: Tensor) -> int | None:
    """The offset of an operand whose memory the node may have; that of a view is never taken."""
    for source in node.sources:
        if source.offset is None or source.size != node.size:
            continue
        if source.readers == 1 and not source.views:
            found, source.offset = source.offset, None
            return found
    return None


class _Room:
    """Free blocks by offset; the last one has no end."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = [(0, 1 << 62)]
        self.most = 0

    def take(self, size: int) -> int:
        holes = self.blocks[:-1]
        fitting = [(length, -i) for i, (_, length) in enumerate(holes) if length >= size]
        at = -min(fitting)[1] if fitting else len(holes)
        offset, length = self.blocks[at]
        self.blocks[at : at + 1] = [(offset + size, length - size)] if length > size else []
        self.most = max(self.most, offset + size)
        return offset

    def free(self, offset: int, size: int) -> None:
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self.blocks, (offset, size)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self.blocks = merged
