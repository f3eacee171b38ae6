"""A trained network for other programs: as ONNX, or as plain arrays.

Both take raw features as one float64 matrix, whose columns are the model's inputs in their order (a category is a column for
each of its texts, 1 or 0), and give what `Model.predict` gives. Scaling is inside, in float64: as float32 times and coordinates
would lose what tells them apart.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from gpuopt import files
from gpuopt.errors import UsageError
from gpuopt.training.data.tables import needing
from gpuopt.training.model import LEAK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gpuopt.training.applied import Model

__all__ = ["FORMATS", "export", "replacing"]

OPSET = 17
IR = 8
"""Of ONNX 1.12 and ONNX Runtime 1.13, from the year 2022 on."""
WORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": LEAK}),
    "elu": ("Elu", {"alpha": 1.0}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "silu": ("Sigmoid", {}),
}
"""What ONNX calls the activations; SiLU is the product of a sigmoid with what goes in."""


def export(model: Model, kind: str, out: str | Path) -> Path:
    """Write a model into a file.

    Parameters
    ----------
    model : Model
    kind : {"onnx", "npz"}
        "onnx" needs the extra ``gpuopt[onnx]``: input ``features``, outputs ``label`` and ``probabilities``, or the numbers
        of a regression, called like the target. "npz": ``w0, b0, w1, ...`` with ``shift``, ``scale``, ``fill``, and what
        the network's outputs become.
    out : path
        Ends in ``.onnx`` or ``.npz``.

    Raises
    ------
    UsageError
        If the format is unknown, has no word for something, or the file cannot be written; nothing is written then.
    """
    if kind not in FORMATS:
        raise UsageError(f"--format {kind}: unknown, expected {' or '.join(FORMATS)}")
    path = Path(out)
    if path.suffix.lower() != f".{kind}":  # nor is it a file of the run's own
        raise UsageError(f"--out {out}: expected a file .{kind}")
    expect_other(path, model.sources, "that the run was trained on")
    content = FORMATS[kind](model)
    with replacing(path) as file:
        file.write(content)
    return path


def expect_other(path: Path, files: Iterable[str | Path], what: str) -> None:
    """Refuse to write over one of the files."""
    for file in files:
        with contextlib.suppress(OSError):  # there is none
            if path.samefile(file):
                raise UsageError(f"--out {path}: is the file {what}, expected another one")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that is at `path` once all of it is written, to stay; UsageError if it cannot be."""
    try:
        with files.replacing(path) as file:
            yield file
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror or error}") from None


def _onnx(model: Model) -> bytes:  # noqa: PLR0915  (one story, a node after the other)
    with needing("onnx", "--format onnx:", ", or take --format npz"):
        from onnx import TensorProto, checker, helper, numpy_helper
    if model.activation not in WORDS:
        reason = f"has no word for the activation {model.activation}"
        raise UsageError(f"--format onnx: {reason}; --format npz has the arrays")
    nodes, constants = [], []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(word: str, *inputs: str, out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(word, list(inputs), [out], name=out, **attributes))
        return out

    prepared, target, wide = model.prepared, model.target, model.matmul == "float64"
    x = "features"
    if prepared.fill is not None:
        x = node("Where", node("IsNaN", x, out="missing"), constant("fill", prepared.fill), x, out="filled")
    x = node("Sub", x, constant("shift", prepared.shift), out="shifted")
    x = node("Div", x, constant("scale", prepared.scale), out="scaled")
    a = node("Cast", x, out="inputs", to=TensorProto.FLOAT)
    for i, layer in enumerate(model.params["layers"]):
        w = np.asarray(layer["w"])
        if wide:  # rounded from float64 as in training
            a = node("Cast", a, out=f"wide{i}", to=TensorProto.DOUBLE)
            a = node("MatMul", a, constant(f"w{i}", w.astype(np.float64)), out=f"product{i}")
            a = node("Cast", a, out=f"narrow{i}", to=TensorProto.FLOAT)
        else:
            a = node("MatMul", a, constant(f"w{i}", w), out=f"product{i}")
        a = node("Add", a, constant(f"b{i}", np.asarray(layer["b"])), out=f"sum{i}")
        if i + 1 < len(model.params["layers"]):
            word, attributes = WORDS[model.activation]
            active = node(word, a, out=f"active{i}", **attributes)
            a = node("Mul", a, active, out=f"gated{i}") if model.activation == "silu" else active
    known: list[Any] = ["samples"]
    if target.classes is not None:
        labels = target.labels
        kinds = {"b": TensorProto.BOOL, "i": TensorProto.INT64, "u": TensorProto.UINT64}
        kind = kinds.get(labels.dtype.kind, TensorProto.STRING)
        index = node("ArgMax", a, out="index", axis=1, keepdims=0)
        if kind == TensorProto.STRING:
            texts = [str(label).encode() for label in labels]
            constants.append(helper.make_tensor("classes", kind, [len(texts)], texts))
        else:
            constant("classes", labels)
        node("Gather", "classes", index, out="label", axis=0)
        node("Softmax", node("Cast", a, out="logits", to=TensorProto.DOUBLE), out="probabilities", axis=1)
        outputs = [
            helper.make_tensor_value_info("label", kind, known),
            helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, [*known, len(labels)]),
        ]
    else:
        a = node("Cast", a, out="outputs", to=TensorProto.DOUBLE)
        a = node("Mul", a, constant("target_scale", target.scale), out="rescaled")
        name = target.names[0] if len(target.names) == 1 else "predictions"
        used = {one.name for one in constants} | {one.name for one in nodes} | {"features"}
        name = f"{name}_" if name in used or not name else name
        single = target.outputs == 1
        a = node("Add", a, constant("target_shift", target.shift), out="numbers" if single else name)
        if single:
            node("Squeeze", a, constant("axis", np.array([1], np.int64)), out=name)
        shape = known if single else [*known, target.outputs]
        outputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape)]
    inputs = [helper.make_tensor_value_info("features", TensorProto.DOUBLE, [*known, prepared.width])]
    graph = helper.make_graph(nodes, "gpuopt", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="gpuopt")
    made.ir_version = IR
    helper.set_model_props(made, {"features": json.dumps(prepared.inputs), "target": json.dumps(target.names)})
    try:
        checker.check_model(made)
        content: bytes = made.SerializeToString()
    except Exception as error:  # noqa: BLE001  (the checker's, protobuf's)
        raise UsageError(f"--format onnx: has no word for this model ({' '.join(str(error).split()):.160})") from None
    return content


def _npz(model: Model) -> bytes:
    arrays: dict[str, Any] = {}
    for i, layer in enumerate(model.params["layers"]):
        arrays |= {f"w{i}": np.asarray(layer["w"]), f"b{i}": np.asarray(layer["b"])}
    prepared, target = model.prepared, model.target
    arrays |= {"features": np.array(prepared.inputs), "target": np.array(target.names)}
    arrays |= {"shift": prepared.shift, "scale": prepared.scale, "activation": np.array(model.activation)}
    if prepared.fill is not None:
        arrays["fill"] = prepared.fill
    if target.classes is not None:
        arrays["classes"] = target.labels
    else:
        arrays |= {"target_shift": target.shift, "target_scale": target.scale}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


FORMATS: dict[str, Callable[[Model], bytes]] = {"onnx": _onnx, "npz": _npz}
