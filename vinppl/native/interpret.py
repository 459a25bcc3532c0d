"""Runs a step program by torch operations: slow, but differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vinppl.native.expressions import Expression
from vinppl.native.network import gradient, unpack_weights
from vinppl.native.steps import StepProgram

__all__ = ["interpret"]

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
}
"""Operations whose name in torch differs; the others are called as torch calls them."""


def interpret(
    program: StepProgram,
    samples: Sequence[int],
    q0: Tensor,
    v0: Tensor,
    parameters: Tensor,
    h: Tensor,
    drive: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the path `(N, time, 2 dim)` of N trajectories; arguments as those of the operator."""
    dim = program.dim
    layers = unpack_weights(program.network, weights) if program.network is not None else []
    fixed = {("p", s): parameters[s] for s in range(len(program.slots))}

    def evaluate(outputs: Sequence[Expression], inputs: dict[Any, Tensor]) -> list[Tensor]:
        return _evaluate(program, outputs, {**fixed, **inputs}, layers, q0)

    def drives(step: int) -> dict[Any, Tensor]:
        values = {}
        for node in range(program.num_nodes):
            for k in range(dim):
                values["d", node, k] = drive[..., step, node, k]
        return values

    def sample(carry: Sequence[Tensor]) -> Tensor:
        values = evaluate(program.finish, {("c", j): x for j, x in enumerate(carry)})
        return torch.stack([x.expand(q0.shape[0]) for x in values], -1)

    state = {("q", k): q0[:, k] for k in range(dim)} | {("v", k): v0[:, k] for k in range(dim)}
    carry = evaluate(program.start, {**state, **drives(0)})
    path = [sample(carry)]
    for step, number in enumerate(samples):
        given = {("c", j): x for j, x in enumerate(carry)}
        carry = evaluate(program.step, {**given, ("h", 0): h[..., step], **drives(step)})
        if number >= 0:
            path.append(sample(carry))
    return torch.stack(path, 1)


def _evaluate(
    program: StepProgram,
    outputs: Sequence[Expression],
    inputs: dict[Any, Tensor],
    layers: Sequence[Tensor],
    like: Tensor,
) -> list[Tensor]:
    graph = program.graph
    values: dict[int, Any] = {}
    forces: dict[int, Tensor] = {}
    for i in graph.needed(outputs):
        kind, payload = graph.operations[i], graph.payloads[i]
        operands = [values[j] for j in graph.operands[i]]
        if kind == "input":
            values[i] = inputs[payload]
        elif kind in ("constant", "truth"):
            values[i] = like.new_tensor(
                Expression(graph, i).value, dtype=torch.bool if kind == "truth" else None
            )
        elif kind == "force":
            call, component = payload
            if call not in forces:
                assert program.network is not None
                forces[call] = gradient(program.network, layers, torch.stack(operands, -1))
            values[i] = forces[call][..., component]
        else:
            values[i] = OPERATIONS.get(kind, getattr(torch, kind, None))(*operands)  # type: ignore[misc]
    return [values[o.index] for o in outputs]
