"""The lineage as a picture: artifacts in layers from raw files down to the released model.

A layered drawing (Sugiyama et al. 1981): every node stands below all it was made from, a line that
passes a layer keeps a narrow lane of its own there, and lanes are ordered by their neighbours' places.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from loom.artifact import Lineage
from loom.report.data import Node
from loom.report.html import Html, el, join

LAYER, BOX = 92, 58  # px: from layer to layer, a box's height
LANE = 0.34  # a passing line's share of a box's width
SWEEPS = 12


def nodes(root: Lineage) -> tuple[Node, ...]:
    """`root` and all it was made from; the raw files below one artifact become a single node."""
    found: dict[str, Node] = {}

    def visit(item: Lineage) -> str:
        key = str(item.path.resolve())
        if key in found:
            return key
        note = "changed since" if item.stale else ""
        found[key] = Node(key, item.kind, _name(item), item.digest, note=note)
        files = [p for p in item.parents if p.kind in ("file", "folder")]
        parents = [visit(p) for p in item.parents if p.kind not in ("file", "folder")]
        if len(files) == 1:
            parents.append(visit(files[0]))
        elif files:
            group = f"{key}:files"
            found[group] = Node(group, "files", f"{len(files):,} raw files")
            parents.append(group)
        found[key] = replace(found[key], parents=tuple(dict.fromkeys(parents)))
        return key

    visit(root)
    ids = {key: str(number) for number, key in enumerate(found)}
    return tuple(
        replace(node, id=ids[node.id], parents=tuple(ids[p] for p in node.parents)) for node in found.values()
    )


def _name(item: Lineage) -> str:
    """The folder's name; a checkpoint's is its run's and its step."""
    path = item.path.resolve()
    if item.kind == "checkpoint" and path.parent.name == "checkpoints":
        step = path.name.removeprefix("step-").lstrip("0") or "0"
        return f"{path.parent.parent.name}, step {step}"
    return path.name


def depths(graph: Sequence[Node]) -> dict[str, int]:
    """Each node's layer: the longest way from a raw input, raw inputs just above their first use."""
    by_id = {node.id: node for node in graph}
    depth: dict[str, int] = {}

    def down(key: str) -> int:
        if key not in depth:
            depth[key] = 0  # digests allow no cycle; should records hold one, it ends here
            depth[key] = 1 + max((down(p) for p in by_id[key].parents if p in by_id), default=-1)
        return depth[key]

    for node in graph:
        down(node.id)
    for node in graph:
        uses = [depth[other.id] for other in graph if node.id in other.parents]
        if not node.parents and uses:
            depth[node.id] = max(0, min(uses) - 1)
    return depth


@dataclass
class _Lane:
    """A box, or a line passing a layer. `x` is its middle in box widths."""

    width: float
    above: list[_Lane] = field(default_factory=list)
    below: list[_Lane] = field(default_factory=list)
    x: float = 0.0


def _link(a: _Lane, b: _Lane) -> None:
    a.below.append(b)
    b.above.append(a)


def _layout(
    graph: Sequence[Node],
) -> tuple[dict[str, tuple[float, int]], list[list[tuple[float, int]]], float]:
    """Each node's (x, layer), each edge's points from parent to child, and the width in box widths."""
    depth = depths(graph)
    layers: list[list[_Lane]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    boxes = {node.id: _Lane(1.0) for node in graph}
    for node in graph:
        layers[depth[node.id]].append(boxes[node.id])
    ways: list[list[tuple[_Lane, int]]] = []
    for node in graph:
        for parent in node.parents:
            if parent not in boxes:
                continue
            way = [(boxes[parent], depth[parent])]
            for level in range(depth[parent] + 1, depth[node.id]):
                lane = _Lane(LANE)
                layers[level].append(lane)
                _link(way[-1][0], lane)
                way.append((lane, level))
            _link(way[-1][0], boxes[node.id])
            way.append((boxes[node.id], depth[node.id]))
            ways.append(way)
    for layer in layers:
        _spread(layer)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for layer in layers if forward else reversed(layers):
            wanted = {id(lane): _mean(lane.above if forward else lane.below, lane.x) for lane in layer}
            layer.sort(key=lambda lane, wanted=wanted: wanted[id(lane)])  # type: ignore[misc]
            for lane in layer:
                lane.x = wanted[id(lane)]
            _part(layer)
    left = min(lane.x - lane.width / 2 for layer in layers for lane in layer)
    right = max(lane.x + lane.width / 2 for layer in layers for lane in layer)
    place = {key: (lane.x - left, depth[key]) for key, lane in boxes.items()}
    return place, [[(lane.x - left, level) for lane, level in way] for way in ways], right - left


def _mean(lanes: list[_Lane], otherwise: float) -> float:
    return sum(lane.x for lane in lanes) / len(lanes) if lanes else otherwise


def _spread(layer: list[_Lane]) -> None:
    """Side by side around 0, in order."""
    x = -sum(lane.width + 0.12 for lane in layer) / 2
    for lane in layer:
        lane.x = x + lane.width / 2
        x += lane.width + 0.12


def _part(layer: list[_Lane]) -> None:
    """Move overlapping neighbours apart, keeping the order and the layer's mean place."""
    if not layer:
        return
    wanted = sum(lane.x for lane in layer) / len(layer)
    for before, lane in itertools.pairwise(layer):
        lane.x = max(lane.x, before.x + (before.width + lane.width) / 2 + 0.12)
    shift = wanted - sum(lane.x for lane in layer) / len(layer)
    for lane in layer:
        lane.x += shift


def draw(graph: Sequence[Node]) -> Html:
    """Boxes with name, kind and the first digits of the digest; a line from each to what it was made from."""
    place, ways, span = _layout(graph)
    unit = min(26.0, 100.0 / span)  # a box's width in per cent of the page's
    margin = (100.0 - span * unit) / 2
    height = LAYER * max(level for _, level in place.values()) + BOX + 4
    boxes = []
    for node in graph:
        x, level = place[node.id]
        left, top = margin + (x - 0.5) * unit, level * LAYER + 2
        boxes.append(
            el(
                "div",
                el("b", node.name),
                el("small", node.kind),
                el("code", node.digest[:12]) if node.digest else None,
                el("small", node.note, class_="worse") if node.note else None,
                class_="node" if node.parents else "node raw",
                style=f"left:{left:.2f}%;width:{unit:.2f}%;top:{top}px;height:{BOX}px",
                title=f"{node.name} ({node.kind}) {node.digest}".strip(),
            )
        )
    lines = [_line([(10 * (margin + x * unit), level) for x, level in way]) for way in ways]
    picture = el(
        "svg",
        join(*lines),
        viewBox=f"0 0 1000 {height}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return el("div", picture, *boxes, class_="ancestry", style=f"height:{height}px")


def _line(way: list[tuple[float, int]]) -> Html:
    """From the bottom of the parent's box, straight through each layer it passes, to the child's top."""
    x, level = way[0]
    y = level * LAYER + 2 + BOX
    d = f"M{x:.1f} {y}"
    for i, (to, below) in enumerate(way[1:], start=2):
        top = below * LAYER + 2
        middle = (y + top) / 2
        d += f"C{x:.1f} {middle:.1f} {to:.1f} {middle:.1f} {to:.1f} {top}"
        x, y = to, top
        if i < len(way):
            y = top + BOX
            d += f"V{y}"
    return el("path", class_="edge", d=d, vector_effect="non-scaling-stroke")
