"""Where frames lie along a motion: generalised coordinates read off pictures, before any training.

A video of a mechanical system with one coordinate is a curve in the space of pictures. Its arc length,
measured along a graph of neighbouring frames, orders them and spaces them as the motion does; networks
that start from there need not discover it, which is where trainings from random weights get lost.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from vinppl._checks import require
from vinppl.errors import DataError

__all__ = ["Embedding", "embed_frames"]

CLOSED = 0.3
"""Ratio of the second to the first variance along the axes above which the curve of frames closes."""

OPEN_SHARE = 0.8
"""Share of a circle at most that an open arc of frames is taken for, where its ends look nothing alike."""

MAX_FRAMES = 1500
"""Frames at most that are embedded; of longer videos evenly many."""

EDGE = 1e-6
"""Least length of an edge between frames that are alike, as a share of the largest distance."""

NUM_NODES = 120
"""Corners of the polygon that a closed curve is measured by."""

NUM_COMPONENTS = 30
"""Principal components of the frames among which distances are taken."""


class Embedding(NamedTuple):
    """Coordinates of some frames.

    Attributes:
        clip: which clip each is of, `(count,)`.
        time: its index there, `(count,)`.
        position: coordinates, `(count, dim)`: of unit size around zero on lines, radians on circles.
        period: of the coordinate, where the curve of frames closes or is an arc of a circle.
    """

    clip: Tensor
    time: Tensor
    position: Tensor
    period: float | None


def embed_frames(
    frames: Tensor,
    seen: Tensor | None = None,
    *,
    dim: int = 1,
    circle: bool = False,
    num_neighbours: int = 6,
) -> Embedding:
    """Return generalised coordinates of frames by geodesic distances among them (Isomap).

    Frames are blurred first, so that distances grow with the motion instead of jumping, and are joined
    to their nearest neighbours and to the next frame of the same clip.

    Args:
        frames: grey levels, `(clip, time, height, width)`.
        seen: boolean, `(clip, time)`; all by default.
        dim: number of coordinates.
        circle: whether the coordinate is an angle. If frames go round, the angle is that of the closed
            curve; otherwise the arc is given the share of the circle that the gap between its ends
            leaves, as far as their pictures tell.
        num_neighbours: of each frame.

    Raises:
        DataError: if fewer than three frames differ.
        ValueError: for a circle of more than one dimension.

    References:
        Tenenbaum, de Silva, Langford: A global geometric framework for nonlinear dimensionality
        reduction. Science 290 (2000).
    """
    require(not circle or dim == 1, "a circle has one coordinate", dim)
    seen = torch.ones(frames.shape[:2], dtype=torch.bool) if seen is None else seen.cpu()
    clip, time = seen.nonzero(as_tuple=True)
    keep = torch.linspace(0, len(clip) - 1, min(len(clip), MAX_FRAMES)).round().long()
    clip, time = clip[keep], time[keep]
    points = _components(frames.detach().cpu()[clip, time])
    distances = cdist(points, points)
    distances = distances / max(distances.max(), 1e-300)
    distinct = len(np.unique(np.round(distances[0], 6)))
    require(distinct >= 3, "frames must show a motion", "fewer than three that differ", error=DataError)
    geodesic = _geodesics(distances, clip.numpy(), num_neighbours)
    axes, variances = _classical_scaling(geodesic, max(dim, 2))
    closed = bool(variances[1] > CLOSED * variances[0])
    period = 2 * math.pi if circle or (closed and dim == 1) else None
    if circle:
        position = _round(axes, points) if closed else _arc(axes[:, 0], distances)
        position = position[:, None]
    else:
        if closed and dim == 1:
            axes = _cut_open(_round(axes, points))[:, None]
        position = axes[:, :dim] - 0.5 * (axes[:, :dim].max(0) + axes[:, :dim].min(0))
        size = math.sqrt((position**2).mean())
        position, period = position / size, None if period is None else period / size
    return Embedding(clip, time, torch.from_numpy(position).to(frames.dtype), period)


def _components(frames: Tensor) -> NDArray[np.float64]:
    """Return the principal components of blurred frames, `(count, NUM_COMPONENTS)`."""
    x = frames.double().unsqueeze(1)
    width = max(3, 2 * (min(frames.shape[-2:]) // 18) + 1)
    for _ in range(3):  # thrice a box is nearly a Gaussian
        x = avg_pool2d(pad(x, (width // 2,) * 4), width, stride=1)
    flat = x.flatten(1).numpy()
    left, size, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    return (left * size)[:, :NUM_COMPONENTS]


def _geodesics(distances: NDArray[np.float64], clip: NDArray[np.int64], num: int) -> NDArray[np.float64]:
    """Return distances along the graph of neighbours, whose separate parts are joined where nearest."""
    count = len(distances)
    tiny = EDGE * distances.max()  # what is near zero counts as no edge
    edges = np.zeros_like(distances)
    nearest = np.argsort(distances, axis=1)[:, 1 : num + 1]
    rows = np.repeat(np.arange(count), nearest.shape[1])
    edges[rows, nearest.ravel()] = distances[rows, nearest.ravel()] + tiny
    follow = np.nonzero(clip[1:] == clip[:-1])[0]
    edges[follow, follow + 1] = distances[follow, follow + 1] + tiny
    edges = np.maximum(edges, edges.T)
    while True:
        parts, label = connected_components(edges, directed=False)
        if parts == 1:
            return np.asarray(shortest_path(edges, directed=False))
        inside, outside = np.nonzero(label == label[0])[0], np.nonzero(label != label[0])[0]
        block = distances[np.ix_(inside, outside)]
        i, j = np.unravel_index(block.argmin(), block.shape)
        edges[inside[i], outside[j]] = edges[outside[j], inside[i]] = block[i, j] + tiny


def _classical_scaling(
    geodesic: NDArray[np.float64], dim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coordinates whose distances are nearest to the given ones, and the variance along each."""
    squares = geodesic**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(-0.5 * centred)
    values, vectors = values[::-1][:dim].clip(min=0), vectors[:, ::-1][:, :dim]
    return vectors * np.sqrt(values), values


def _arc(length: NDArray[np.float64], distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angles of an open arc of a circle, around zero.

    The gap between the ends is their distance where that is small; frames with nothing in common have
    the largest distance there is, and tell only that the gap is wide.
    """
    low, high = int(length.argmin()), int(length.argmax())
    span, gap = length[high] - length[low], distances[low, high]
    if gap > 0.7 * distances.max():
        gap = max(gap, (1 / OPEN_SHARE - 1) * span)
    return 2 * math.pi * (length - 0.5 * (length[low] + length[high])) / (span + gap)


def _round(axes: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angles of a closed curve, in proportion to its length.

    Two axes show a closed curve as a ring, on which lengths are not what they are along it; but they order
    it. Local means of the points are the corners of a polygon, whose sides have the right lengths.
    """
    angle = np.arctan2(axes[:, 1], axes[:, 0])
    nodes = np.linspace(-math.pi, math.pi, NUM_NODES, endpoint=False)
    apart = np.angle(np.exp(1j * (nodes[:, None] - angle)))
    weights = np.exp(-0.5 * (apart * NUM_NODES / (2 * math.pi)) ** 2) + 1e-12
    weights /= weights.sum(1, keepdims=True)
    centres = np.angle(weights @ np.exp(1j * angle))
    order = np.argsort(centres)
    place, corners = centres[order] - centres[order[0]], (weights @ points)[order]
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    length = np.append(0.0, sides.cumsum())
    beyond = np.mod(angle - centres[order[0]], 2 * math.pi)
    return 2 * math.pi * np.interp(beyond, np.append(place, 2 * math.pi), length) / length[-1]


def _cut_open(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return angles on an interval of one turn that begins in the middle of their widest gap."""
    ordered = np.sort(angle)
    gaps = np.diff(np.append(ordered, ordered[0] + 2 * math.pi))
    widest = int(gaps.argmax())
    start = ordered[widest] + 0.5 * gaps[widest]
    return np.mod(angle - start, 2 * math.pi)
