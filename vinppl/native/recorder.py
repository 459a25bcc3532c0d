"""Records what a function of tensors does, as a graph of elementary operations.

The function runs once, on examples, below automatic differentiation: recorded are the operations that
the processor would do, those of derivatives included. `make_fx` of torch does the same for more kinds of
tensors, at five times the cost and with torch's compiler loaded; but it also takes numbers that are read
from tensors for constants, where another call may have others.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vinppl.native.elementwise import decompositions
from vinppl.native.errors import Unsupported

__all__ = ["record"]

aten = torch.ops.aten

READS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.item})
READS |= {Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__complex__}
"""Functions that read the values of a tensor, some past all operations."""


def record(function: Callable[..., Any], *examples: Tensor, constants: bool = False) -> GraphModule:
    """Return the graph of a function that runs on the examples; no operation in it changes a tensor.

    Args:
        function: of tensors, to a structure of tensors and numbers.
        examples: its arguments.
        constants: whether tensors that it gets from elsewhere are constant, and so is all that does not
            depend on its arguments. Otherwise they are in the graph as they are.

    Raises:
        Unsupported: if control flow depends on the values of tensors, or something cannot be recorded.
    """
    try:
        module = _record(function, examples, constants, fold=constants)
        if any(_changes_a_tensor(node) for node in module.graph.nodes):
            # What is changed may be a view of a constant: this takes all operations, in order.
            whole = _record(function, examples, constants, fold=False)
            module = _record(functionalize(whole, remove="mutations"), examples, constants, fold=constants)
    except Unsupported:
        raise
    except Exception as error:
        text = str(error.__cause__ or error).partition("\n")[0][:200]
        raise Unsupported(f"something that cannot be traced ({type(error).__name__}: {text})") from error
    for node in module.graph.nodes:
        if _changes_a_tensor(node):
            raise Unsupported(f"the operation {node.target}, which changes a tensor")
    module.graph.eliminate_dead_code()
    return module


def _record(
    function: Callable[..., Any], examples: Sequence[Tensor], constants: bool, *, fold: bool
) -> GraphModule:
    recorder = _Recorder(constants, fold)
    for example in examples:
        recorder.add_argument(example)
    with _ReadsAreSeen(recorder), recorder:
        result = function(*examples)
    recorder.graph.output(recorder.nodes_of(result))
    return GraphModule(recorder.held, recorder.graph)


def _changes_a_tensor(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


class _Recorder(TorchDispatchMode):
    """Runs operations and notes them, composed ones by their parts.

    Args:
        constants: as in `record`.
        fold: whether operations on constants are left out, and their results are constants.

    Attributes:
        graph: what was recorded.
        held: tensors from elsewhere, by the names that the graph has for them.
    """

    def __init__(self, constants: bool, fold: bool) -> None:
        super().__init__()
        self.graph = Graph()
        self.held: dict[str, Tensor] = {}
        self._constants, self._fold = constants, fold
        # Keyed by identity; tensors are kept so that no identity is used twice.
        self._noted: dict[int, tuple[Node, Tensor]] = {}
        self._elsewhere: dict[tuple[int, int], tuple[Node, Tensor]] = {}
        self._open: set[Node] = set()  # those whose values may be others in another call

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing needs to keep `torch.compile` away from here: it would be loaded for that."""
        return False

    def add_argument(self, x: Tensor) -> None:
        """Add an argument of the graph, which the tensor stands for."""
        node = self.graph.placeholder(f"argument_{len(self._noted)}")
        self._open.add(node)
        self._note(x, node)

    def nodes_of(self, x: Any) -> Any:
        """Return a structure of tensors as one of nodes."""
        return pytree.tree_map(lambda part: self._node(part) if isinstance(part, Tensor) else part, x)

    def read(self, x: Tensor) -> None:
        """Allow that a tensor's values are read.

        Raises:
            Unsupported: if they may be others in another call.
        """
        known = self._constants and id(x) not in self._noted
        if not known and self._node(x) in self._open:
            raise Unsupported("control flow that depends on the values of tensors")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsupported(f"random numbers ({func})")
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if self._fold and not any(id(x) in self._noted for x in tensors):
            return func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            for x in tensors:
                self.read(x)
            return func(*args, **kwargs)
        for simpler in _simpler(func):
            with self:
                result = simpler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation and record it."""
        literal = func is aten.lift_fresh.default  # numbers that the program itself holds
        target = aten.lift_fresh_copy.default if literal else func
        given, named = self.nodes_of((args, kwargs))
        node = self._call(target, given, named)
        if literal:
            self._open.discard(node)
        result = func(*args, **kwargs)
        self._note(result, node)
        for number, part in enumerate(result if isinstance(result, tuple | list) else ()):
            self._note(part, self._call(operator.getitem, (node, number), {}))
        return result

    def _call(self, target: Any, args: Any, kwargs: Any) -> Node:
        node = self.graph.call_function(target, args, kwargs)
        if any(source in self._open for source in node.all_input_nodes):
            self._open.add(node)
        return node

    def _note(self, x: Any, node: Node) -> None:
        """Let a node stand for a tensor from now on."""
        node.meta["val"] = pytree.tree_map(_without_values, x)
        if isinstance(x, Tensor):
            self._noted[id(x)] = node, x

    def _node(self, x: Tensor) -> Node:
        """Return the node of a tensor; constants are copied, since they may change later."""
        if id(x) in self._noted:
            return self._noted[id(x)][0]
        key = (id(x), 0 if x.is_inference() else x._version)
        if key not in self._elsewhere:
            name = f"tensor_{len(self.held)}"
            self.held[name] = x.detach().clone() if self._constants else x
            node = self.graph.get_attr(name)
            node.meta["val"] = _without_values(x)
            self._elsewhere[key] = node, x
            if not self._constants:
                self._open.add(node)
        return self._elsewhere[key][0]


class _ReadsAreSeen(TorchFunctionMode):
    """Tells a recorder about tensors that are read past all operations."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self._recorder.read(args[0])
        return func(*args, **(kwargs or {}))


@functools.cache
def _simpler(func: Any) -> tuple[Callable[..., Any], ...]:
    """Return what expresses an operation by simpler ones, where it applies."""
    rule = decompositions().get(func)
    composed = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return (*([rule] if rule is not None else []), *([func.decompose] if composed else []))


def _without_values(x: Any) -> Any:
    """Return a tensor of the same shape and type that holds nothing."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
