"""Rollouts inside a compiled density: calls of the loops over time on arrays in the density's workspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from torch.fx import Node

from vinppl.native.arrays import Buffer, Place, dot, row_major
from vinppl.native.errors import Unsupported
from vinppl.native.kernels import ADJOINT_ARGUMENTS, FORWARD_ARGUMENTS, Layout, emit_adjoint, emit_forward
from vinppl.native.network import emit_parameter_gradient, scratch_size
from vinppl.native.rollout import PLANS, choose_lanes
from vinppl.native.views import Index, arguments_of, shape_of
from vinppl.native.writer import Writer

__all__ = ["ROLLOUTS"]

Pointers = dict[str, Any]
"""Addresses of arrays by the names that the loops have for them."""


def _forward(w: Writer, node: Node) -> None:
    *inputs, number, _ = arguments_of(node)
    _Rollout(w, node, inputs, number).forward()


def _adjoint(w: Writer, node: Node) -> None:
    seed, *rest = arguments_of(node)
    inputs, (carries, _, _, number, *wanted) = rest[:6], rest[6:]
    _Rollout(w, node, inputs, number).adjoint(carries.args[0], seed, *wanted)


class _Rollout:
    """One call of a loop: its arrays have the trajectories innermost, filled up to whole lanes.

    Args:
        w: of the function.
        node: the call.
        inputs: nodes of q0, v0, parameters, h, drive and weights, as the operator has them.
        number: of the plan.

    Raises:
        Unsupported: for network weights that are latent, with several chains side by side.
    """

    def __init__(self, w: Writer, node: Node, inputs: Sequence[Node], number: int) -> None:
        self.w, self.node, self.number = w, node, number
        self.plan = PLANS[number]
        self.program = self.plan.program
        self.q0, self.v0, self.parameters, self.h, self.drive, self.weights = inputs
        self.count, self.dim = shape_of(self.q0)
        self.lanes = choose_lanes(self.count, "float64") if w.lanes == 1 else w.lanes
        self.row = -(-self.count // self.lanes) * self.lanes if w.lanes == 1 else self.count
        self.steps = self.plan.num_steps
        self.calls = self.program.start_calls + self.steps * self.program.step_calls
        self.h_shared = self.h.op == "get_attr" and len(shape_of(self.h)) == 1
        self.drive_shared = self.program.num_nodes == 0 or (
            self.drive.op == "get_attr" and len(shape_of(self.drive)) <= 3
        )
        self._borrowed: list[tuple[Node, str]] = []
        if self.program.network is not None and w.lanes > 1 and self.weights.op != "get_attr":
            raise Unsupported("several chains with different network weights side by side")

    def forward(self) -> None:
        """Write a call of the forward loop; the path is the node's first part."""
        w, program, network = self.w, self.program, self.program.network
        given = self._inputs()
        sizes = {
            "path": self.plan.num_times * 2 * self.dim,
            "carries": (self.steps + 1) * len(program.start),
            "positions": self.dim * self.calls,
            "slopes": self.calls * (self.dim + self.dim**2),
        }
        kept = w.kept[self.node] = self._take(sizes)
        scratch = 0 if network is None else scratch_size(network, self.lanes)
        given["scratch"] = w.pointer(self._borrow("scratch", -(-scratch // w.lanes)))
        given["weights"] = self._weights()
        self._call("forward", given | self._pointers(kept))
        self._place_parts({0: Buffer(kept["path"], (1, 2 * self.dim * self.row, self.row))})

    def adjoint(self, forward: Node, seed: Node, by_h: bool, by_drive: bool, by_weights: bool) -> None:
        """Write a call of the adjoint loop; the node's parts are the gradients of the inputs.

        Args:
            forward: the call of the forward loop.
            seed: gradient with respect to its path.
            by_h: whether the gradient of the steps is wanted.
            by_drive: whether that of the drive is.
            by_weights: whether that of the weights is.
        """
        w, kept = self.w, self.w.kept[forward]
        given = self._inputs()
        given["path_gradient"] = w.pointer(self._seed(seed))
        nodes, num_slots = self.program.num_nodes, len(self.program.slots)
        drive_shape = (max(1, self.steps), nodes, self.dim)
        sizes = {
            "q0_gradient": self.dim,
            "v0_gradient": self.dim,
            "parameter_gradient": num_slots,
            "h_gradient": self.steps if by_h else 0,
            "drive_gradient": math.prod(drive_shape) if by_drive else 0,
            "force_gradient": self.dim * self.calls,
        }
        found = self._take(sizes)
        saved = {name: kept[name] for name in ("carries", "positions", "slopes")}
        flags = {"h_gradient": bool(by_h), "drive_gradient": bool(by_drive)}
        self._call("adjoint", given | self._pointers(saved) | self._pointers(found), **flags)
        self._place_parts(
            {
                0: Buffer(found["q0_gradient"], (1, self.row)),
                1: Buffer(found["v0_gradient"], (1, self.row)),
                2: Buffer(found["parameter_gradient"], (self.row, 1)),
            }
        )
        for user in self.node.users:
            if user.args[1] == 3 and by_h:
                self._place_gradient(user, found["h_gradient"], [self.steps], shape_of(self.h))
            elif user.args[1] == 4 and by_drive:
                self._place_gradient(user, found["drive_gradient"], drive_shape, shape_of(self.drive))
            elif user.args[1] == 5 and by_weights:
                self._place_weight_gradient(user, kept["positions"], found["force_gradient"])

    # Memory

    def _take(self, sizes: dict[str, int]) -> dict[str, int]:
        """Return memory for arrays of so many rows, which belong to the node."""
        return {name: self.w.memory.take((self.node, name), size * self.row) for name, size in sizes.items()}

    def _borrow(self, name: str, size: int) -> int:
        """Return memory that is needed for the call only."""
        self._borrowed.append((self.node, name))
        return self.w.memory.take((self.node, name), size)

    def _pointers(self, offsets: dict[str, int]) -> Pointers:
        return {name: self.w.pointer(offset) for name, offset in offsets.items()}

    # Inputs

    def _inputs(self) -> Pointers:
        """Write the inputs that both loops have."""
        w, slots, slot_shape = self.w, len(self.program.slots), shape_of(self.parameters)[:1]
        q0, v0 = (
            self._rows(name, node, [self.dim], lambda index, n: (n, *index))
            for name, node in (("q0", self.q0), ("v0", self.v0))
        )
        parameters = self._rows("p", self.parameters, slot_shape, lambda index, n: (*index, n)) if slots else 0
        offset = w.module.constants.table(f"samples {self.number}", torch.from_numpy(self.plan.samples))
        return {
            **self._pointers({"q0": q0, "v0": v0, "parameters": parameters}),
            "h": self._steps(),
            "drive": self._drive(),
            "samples": w.table_pointer(offset),
        }

    def _rows(
        self, name: str, node: Node, shape: Sequence[int], source: Callable[[Index, Place], Index]
    ) -> int:
        """Write a borrowed array `(*shape, row)`.

        Args:
            name: of the array.
            node: what it holds.
            shape: without the trajectories.
            source: the place in `node` of an index and a trajectory.
        """
        offset = self._borrow(name, math.prod(shape) * self.row)
        strides = tuple(s * self.row for s in row_major(shape))
        with self.w.loops(shape) as (outer, index):
            buffer, start = Buffer(offset, (1,)), dot(index, strides)
            with self.w.loops([self.count]) as (body, (n,)):
                body.store(body.read(node, source(index, n)), buffer, (start + n,))
            for n in range(self.count, self.row):
                outer.store(outer.read(node, source(index, self.count - 1)), buffer, (start + n,))
        return offset
