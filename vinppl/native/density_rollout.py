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
        parameters = (
            self._rows("p", self.parameters, slot_shape, lambda index, n: (*index, n)) if slots else 0
        )
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

    def _steps(self) -> Any:
        if self.h_shared:
            return self.w.constant_pointer(self.h)
        own = len(shape_of(self.h)) > 1
        offset = self._rows("h", self.h, [self.steps], lambda index, n: (n, *index) if own else index)
        return self.w.pointer(offset)

    def _drive(self) -> Any:
        if self.program.num_nodes == 0:
            return self.w.workspace
        if self.drive_shared:
            return self.w.constant_pointer(self.drive)
        shape = shape_of(self.drive)
        own = len(shape) > 3
        offset = self._rows("drive", self.drive, shape[-3:], lambda index, n: (n, *index) if own else index)
        return self.w.pointer(offset)

    def _weights(self) -> Any:
        """Return the address of the network's weights: constants, or one chain's own."""
        if self.program.network is None:
            return self.w.workspace
        if self.weights.op == "get_attr":
            return self.w.constant_pointer(self.weights)
        buffer = self.w.buffer(self.weights)
        assert buffer is not None
        assert buffer.strides == (1,)
        return self.w.pointer(buffer.offset)

    def _seed(self, seed: Node) -> int:
        """Write the gradient with respect to the path; trajectories that fill up the lanes have none."""
        w, shape = self.w, (self.plan.num_times, 2 * self.dim)
        offset = self._borrow("seed", math.prod(shape) * self.row)
        with w.loops(shape) as (outer, (t, k)):
            buffer, start = Buffer(offset, (1,)), dot((t, k), (shape[1] * self.row, self.row))
            with w.loops([self.count]) as (body, (n,)):
                body.store(body.read(seed, (n, t, k)), buffer, (start + n,))
            for n in range(self.count, self.row):
                outer.store(w.b.const(0.0), buffer, (start + n,))
        return offset

    # Calls and results

    def _call(self, kind: str, given: Pointers, **flags: bool) -> None:
        """Write a call, and give back what was borrowed for it."""
        w, program = self.w, self.program
        emit = emit_forward if kind == "forward" else emit_adjoint
        names = FORWARD_ARGUMENTS if kind == "forward" else ADJOINT_ARGUMENTS
        layout = Layout(self.lanes, "float64", self.h_shared, self.drive_shared, keep=True, **flags)

        def write(name: str) -> ir.Function:
            return emit(w.module.llvm, program, layout, name, internal=True)

        function = w.module.function((id(program), layout, kind), write)
        size = w.b.index(self.row * w.lanes)
        w.b.ir.call(function, [size, w.b.index(self.steps), *(given[name] for name in names)])
        for owner in self._borrowed:
            w.memory.release(owner)

    def _place_parts(self, buffers: dict[int, Buffer]) -> None:
        """Say where the parts of the result lie."""
        for user in self.node.users:
            part: Any = user.args[1]
            if part in buffers:
                self.w.place(user, buffers[part])

    def _place_gradient(self, node: Node, offset: int, shape: Sequence[int], like: Sequence[int]) -> None:
        """Place a gradient `(*shape, row)`: summed over trajectories where the input is shared."""
        w = self.w
        strides = tuple(s * self.row for s in row_major(shape))
        if len(like) > len(shape):
            w.place(node, Buffer(offset, (1, *strides)))
            return
        source, buffer = Buffer(offset, (*strides, 1)), w.allocate(node)
        with w.loops(shape) as (outer, index):
            total = w.b.variable(w.b.const(0.0))
            with w.loops([self.count]) as (body, (n,)):
                w.b.set(total, w.b.add(w.b.get(total), body.write(body.load(source, (*index, n)))))
            outer.store(w.b.get(total), buffer, index)

    def _place_weight_gradient(self, node: Node, positions: int, cotangents: int) -> None:
        """Write the gradient of the network's weights, from arrays `[dim][samples]` of all evaluations."""
        w, network = self.w, self.program.network
        if network is None or len(network.hidden_sizes) > 1 or w.lanes > 1:
            raise Unsupported("latent weights of a network with several hidden layers")

        def write(name: str) -> ir.Function:
            return emit_parameter_gradient(w.module.llvm, network, name)

        function = w.module.function(network, write)
        arrays = [w.pointer(positions), w.pointer(cotangents), self._weights()]
        gradient = w.pointer(w.allocate(node).offset)
        w.b.ir.call(function, [w.b.index(self.calls * self.row), *arrays, gradient])


ROLLOUTS: dict[Any, Callable[[Writer, Node], None]] = {
    torch.ops.vinppl.rollout.default: _forward,
    torch.ops.vinppl.rollout_adjoint.default: _adjoint,
}
"""How the operators of `vinppl.native.rollout` are written."""
