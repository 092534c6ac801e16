"""Pack a fused model for a GPU: in fp16, and the tokens of all windows of a run one after another.

On a GPU padding and launches decide, so the graph is another than the CPU's, made anew of the same constants:

- *No padding.* Every operator but attention works token by token and does not care whose token it is. Attention is told
  where each window begins (`PackedMultiHeadAttention`, which reads queries, keys and values where the projections put
  them, in a flash kernel).
- *Few launches.* Embeddings and their norm, sum and norm, bias and Gelu are one node each: ONNX Runtime's fusions of
  these pairs, which are slow on a CPU, are fast here.
- *Fewer biases.* A key's bias adds the same to all scores of a query, so softmax drops it; a value's passes through
  attention whole, because the weights of a token sum to one, and goes into the bias of the projection after it.
- *fp32 for the answer head.* fp16 tells apart no logits that differ by less than a hundredth; kernels add products and
  take norms and softmax in fp32 whatever the inputs are.

The twin is the same graph with attention over a block-diagonal mask. It runs on a CPU, where packed attention has no
kernel, and shows that packing is right; nobody would serve it. It works in fp32 but rounds all that an operator gives
to the precision of the original, in nodes of its own: the casts that ONNX Runtime puts around operators without a
kernel for fp16 it takes out again where two meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from distilqa.bundle import Architecture
from distilqa.engine.packed import CUMULATIVE_LENGTHS, INPUT_IDS, LOGITS, POSITION_IDS, TOKEN_OFFSET, TOKEN_TYPE_IDS
from distilqa_export.arrays import Float64
from distilqa_export.errors import ExportError
from distilqa_export.graph.fuse import CONTRIB, expect_operators
from distilqa_export.graph.layers import Layer, Linear, after, constant, layers, operand

# Of which CUDA has a kernel for every operator here.
_OPSET, _IR_VERSION = 17, 10

# Far below any score, and still a number in fp16.
_MASKED = -6e4

FP16 = ir.DataType.FLOAT16

_INPUTS = {
    INPUT_IDS: (1, "tokens"),
    POSITION_IDS: (1, "tokens"),
    TOKEN_TYPE_IDS: (1, "tokens"),
    CUMULATIVE_LENGTHS: ("windows + 1",),
    TOKEN_OFFSET: ("windows", "longest"),
}


def pack(fused: ir.Model, architecture: Architecture, *, precision: ir.DataType = FP16, twin: bool = False) -> ir.Model:
    """Return the packed model of a fused one; its inputs and output are those of `distilqa.engine.packed`.

    Raises ExportError where a weight is no number in ``precision``, the graph is not what the architecture demands, or
    its heads have a width for which there is no flash kernel.
    """
    width = architecture.hidden // architecture.heads
    if width % 8:
        raise ExportError(f"attention has heads of {width}; packed attention on a GPU needs a multiple of 8")
    build = _Builder(architecture, precision, twin)
    model = build.model(_Constants.of(fused))
    expect_operators(model, packed_operators(architecture, twin=twin))
    return model


def packed_operators(architecture: Architecture, *, twin: bool = False) -> dict[str, int]:
    """How many of each operator that does work the packed model has."""
    count = architecture.layers
    return {
        "MultiHeadAttention" if twin else "PackedMultiHeadAttention": count,
        "BiasGelu": count,
        "EmbedLayerNormalization": 1,
        "SkipLayerNormalization": 2 * count,
        "MatMul": 6 * count + 1,
        "Add": count + 1,  # the queries' biases, and the head's
        "LayerNormalization": 0,
        "Attention": 0,
        "Transpose": 0,
    }


@dataclass(frozen=True, slots=True)
class _Norm:
    """The constants of a layer norm: each (hidden,), and what is added to the variance."""

    gain: Float64
    bias: Float64
    epsilon: float

    @classmethod
    def of(cls, normed: ir.Value) -> _Norm:
        """That which gave the value."""
        node = normed.producer()
        assert node is not None
        return cls(constant(operand(node, 1)), constant(operand(node, 2)), node.attributes["epsilon"].as_float())


@dataclass(frozen=True, slots=True)
class _Layer:
    """The constants of a layer: weights are (inputs, outputs), biases (outputs,); attention's are folded."""

    query: Float64
    query_bias: Float64
    key: Float64
    value: Float64
    out: Float64
    out_bias: Float64
    norm: _Norm
    widen: Float64
    widen_bias: Float64
    narrow: Float64
    narrow_bias: Float64
    last_norm: _Norm


@dataclass(frozen=True, slots=True)
class _Constants:
    """All that a fused model knows. ``tables`` are the embeddings, by the input that looks them up."""

    tables: dict[str, Float64]
    norm: _Norm
    layers: list[_Layer]
    head: Float64
    head_bias: Float64

    @classmethod
    def of(cls, fused: ir.Model) -> _Constants:
        products = [node for node in fused.graph if node.op_type == "MatMul"]
        head = [node for node in products if operand(node, 1).const_value is not None][-1]
        [(head_add, _)] = head.outputs[0].uses()
        first = next(node for node in fused.graph if node.op_type == "LayerNormalization")
        return cls(
            _tables(fused),
            _Norm.of(first.outputs[0]),
            [_folded(layer) for layer in layers(fused)],
            constant(operand(head, 1)),
            Linear(head, head_add).bias,
        )


def _tables(fused: ir.Model) -> dict[str, Float64]:
    """The embeddings. That of the positions is looked up with what the graph makes of the length."""
    inputs = {value.name for value in fused.graph.inputs}
    lookups = [node for node in fused.graph if node.op_type == "Gather" and operand(node, 0).const_value is not None]
    named = [(operand(node, 1).name, constant(operand(node, 0))) for node in lookups]
    return {str(name) if name in inputs else POSITION_IDS: table for name, table in named if table.ndim == 2}


def _folded(layer: Layer) -> _Layer:
    normed = after(layer.out.output, "Add", "LayerNormalization")
    return _Layer(
        query=layer.query.weight,
        query_bias=layer.query.bias,
        key=layer.key.weight,
        value=layer.value.weight,
        out=layer.out.weight,
        out_bias=layer.out.bias + layer.value.bias @ layer.out.weight,
        norm=_Norm.of(normed),
        widen=layer.widen.weight,
        widen_bias=layer.widen.bias,
        narrow=layer.narrow.weight,
        narrow_bias=layer.narrow.bias,
        last_norm=_Norm.of(after(layer.narrow.output, "Add", "LayerNormalization")),
    )


class _Builder:
    """Makes the nodes, one after another."""

    def __init__(self, architecture: Architecture, precision: ir.DataType, twin: bool) -> None:
        self._architecture, self._precision, self._twin = architecture, precision, twin
        self._tape = ir.tape.Tape()
        self._inputs: dict[str, ir.Value] = {}
        self._bias: ir.Value | None = None

    def model(self, known: _Constants) -> ir.Model:
        for name, shape in _INPUTS.items():
            if name != TOKEN_TYPE_IDS or TOKEN_TYPE_IDS in known.tables:
                kind = ir.TensorType(ir.DataType.INT32)
                self._inputs[name] = ir.Value(name=name, type=kind, shape=ir.Shape(shape))
        x = self._embed(known)
        for layer in known.layers:
            x = self._layer(x, layer)
        x = x if self._twin else self._op("Cast", x, to=ir.DataType.FLOAT)
        product = self._op("MatMul", x, self._constant(known.head, ir.DataType.FLOAT))
        logits = self._op("Add", product, self._constant(known.head_bias, ir.DataType.FLOAT))
        logits.name, logits.type = LOGITS, ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(["tokens", known.head.shape[1]])
        graph = ir.Graph(
            list(self._inputs.values()),
            [logits],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": _OPSET, CONTRIB: 1},
            name="packed",
        )
        return ir.Model(graph, ir_version=_IR_VERSION)

    def _embed(self, known: _Constants) -> ir.Value:
        """(tokens, hidden)."""
        segments = self._inputs.get(TOKEN_TYPE_IDS)
        x = self._contrib(
            "EmbedLayerNormalization",
            self._inputs[INPUT_IDS],
            segments,
            self._constant(known.tables[INPUT_IDS]),
            self._constant(known.tables[POSITION_IDS]),
            segments and self._constant(known.tables[TOKEN_TYPE_IDS]),
            self._constant(known.norm.gain),
            self._constant(known.norm.bias),
            None,
            self._inputs[POSITION_IDS],
            outputs=2,
            epsilon=known.norm.epsilon,
        )
        return self._op("Reshape", self._rounded(x), self._rows(len(known.norm.gain)))

    def _layer(self, x: ir.Value, known: _Layer) -> ir.Value:
        query = self._rounded(self._op("Add", self._product(x, known.query), self._constant(known.query_bias)))
        mixed = self._attend(query, self._product(x, known.key), self._product(x, known.value))
        x = self._add_norm(self._product(mixed, known.out), x, known.norm, known.out_bias)
        wide = self._rounded(self._contrib("BiasGelu", self._product(x, known.widen), self._constant(known.widen_bias)))
        return self._add_norm(self._product(wide, known.narrow), x, known.last_norm, known.narrow_bias)

    def _attend(self, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        heads = self._architecture.heads
        if not self._twin:
            places = self._inputs[TOKEN_OFFSET], self._inputs[CUMULATIVE_LENGTHS]
            return self._contrib("PackedMultiHeadAttention", query, key, value, None, *places, num_heads=heads)
        first = self._constant(np.array([0]), ir.DataType.INT64)
        one_window = [self._op("Unsqueeze", each, first) for each in (query, key, value)]
        found = self._contrib("MultiHeadAttention", *one_window, None, None, self._block_diagonal(), num_heads=heads)
        return self._op("Squeeze", self._rounded(found), first)

    def _block_diagonal(self) -> ir.Value:
        """(1, 1, tokens, tokens): 0 within a window, far less between two."""
        if self._bias is None:
            whole = ir.DataType.INT64
            zero, one = (self._constant(np.array(number), whole) for number in (0, 1))
            first, second = (self._constant(np.array([number]), whole) for number in (0, 1))
            tokens = self._op("Squeeze", self._op("Shape", self._inputs[INPUT_IDS], start=1))
            place = self._op("Cast", self._op("Range", zero, tokens, one), to=ir.DataType.INT32)
            begun = self._op("GreaterOrEqual", self._op("Unsqueeze", place, second), self._inputs[CUMULATIVE_LENGTHS])
            window = self._op("ReduceSum", self._op("Cast", begun, to=whole), second, keepdims=0)
            same = self._op("Equal", self._op("Unsqueeze", window, second), self._op("Unsqueeze", window, first))
            bias = self._op("Where", same, self._constant(np.array(0.0)), self._constant(np.array(_MASKED)))
            self._bias = self._op("Unsqueeze", bias, self._constant(np.array([0, 1]), whole))
        return self._bias

    def _add_norm(self, x: ir.Value, skipped: ir.Value, norm: _Norm, bias: Float64) -> ir.Value:
        constants = [self._constant(numbers) for numbers in (norm.gain, norm.bias, bias)]
        return self._rounded(self._contrib("SkipLayerNormalization", x, skipped, *constants, epsilon=norm.epsilon))

    def _product(self, x: ir.Value, weight: Float64) -> ir.Value:
        return self._rounded(self._op("MatMul", x, self._constant(weight)))

    def _rounded(self, x: ir.Value) -> ir.Value:
        """In the twin, what the original's precision leaves of a value."""
        if not self._twin or self._precision == ir.DataType.FLOAT:
            return x
        return self._op("Cast", self._op("Cast", x, to=self._precision), to=ir.DataType.FLOAT)

    def _rows(self, columns: int) -> ir.Value:
        return self._constant(np.array([-1, columns]), ir.DataType.INT64)

    def _constant(self, numbers: Float64, kind: ir.DataType | None = None) -> ir.Value:
        kind = kind or self._precision
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(numbers).astype(kind.numpy())
        if not np.isfinite(cast).all():
            raise ExportError(f"a weight of {np.abs(numbers).max():g} is no number in {kind.name.lower()}")
        if self._twin and kind == self._precision:
            cast = cast.astype(np.float32)
        return self._tape.initializer(ir.tensor(cast), name=f"constant{len(self._tape.initializers)}")

    def _op(self, name: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self._tape.op(name, inputs, attributes, domain=domain)

    def _contrib(self, name: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        return self._tape.op_multi_out(name, inputs, attributes, num_outputs=outputs, domain=CONTRIB)[0]
