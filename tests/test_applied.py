"""A trained network as a thing one can use: what it predicts, what is exported, what is refused; and what is said of data."""

import io
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from running import rows
from typer.testing import CliRunner

import gpuopt
from gpuopt.cli import app
from gpuopt.training import Callback, Config, Model, UsageError, load, load_model, resume, train
from gpuopt.training.data import from_arrays
from gpuopt.training.data.preparation import Features
from gpuopt.training.export import export
from gpuopt.training.model import ACTIVATIONS
from gpuopt.training.predicting import evaluate_file, predict_file

RANDOM = np.random.RandomState(7)
N = 120
X = RANDOM.randn(N, 3) * [1, 100, 1e-3] + [1.7e9, 0, 5]
CLASSES = np.where(X[:, 0] + X[:, 1] / 100 > 1.7e9, "ja", "nein")
PRICES = 250_000.5 + 1000 * (X[:, 0] - 1.7e9) + 20 * X[:, 1]
FRAME = pd.DataFrame(X, columns=["when", "b", "c"])
KINDS = np.array(["red", "green", "blue"])[RANDOM.randint(3, size=N)]
QUICK: dict[str, Any] = {"hidden": (8,), "epochs": 40, "batch_size": 32, "lr": 0.02, "standardize": True}

TARGETS: dict[str, Any] = {
    "text": CLASSES,
    "identifiers": np.where(CLASSES == "ja", 2**53 + 1, 2**53),
    "large identifiers": np.where(CLASSES == "ja", np.uint64(2**63 + 1), np.uint64(2**63 + 2)),
    "whole numbers": np.where(CLASSES == "ja", 7, -1),
    "flags": CLASSES == "ja",
    "a number": PRICES,
    "two numbers": np.stack([PRICES, X[:, 1]], axis=1),
}


def trained(folder: Path, x: Any, y: Any, **options: Any) -> Model:
    train(Config(**QUICK | options), data=(x, y), out=folder, report=False)
    return load_model(folder)


def reference(model: Model, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The network's outputs, in float64 throughout."""
    a = (x - model.prepared.shift) / model.prepared.scale
    layers = [{name: np.asarray(p, np.float64) for name, p in layer.items()} for layer in model.params["layers"]]
    for number, layer in enumerate(layers, 1):
        a = a @ layer["w"] + layer["b"]
        a = np.maximum(a, 0) if number < len(layers) else a
    return a


@pytest.mark.parametrize("table", [False, True], ids=["array", "frame"])
@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS)
def test_predictions_are_those_of_the_formula(tmp_path: Path, y: NDArray[Any], table: bool) -> None:
    x = FRAME if table else X
    model = trained(tmp_path / "run", x, y)
    found, outputs = model.predict(x), reference(model, X)
    assert model.features == (("when", "b", "c") if table else ("x0", "x1", "x2"))
    assert model.layers == (3, 8, outputs.shape[1])
    if model.classes is not None:
        assert (found.dtype.kind, model.classes.dtype.kind) == (y.dtype.kind, y.dtype.kind)
        np.testing.assert_array_equal(model.classes, np.unique(y))
        np.testing.assert_array_equal(found, np.unique(y)[outputs.argmax(axis=1)])
        likely = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(model.predict_proba(x), likely, rtol=1e-4, atol=1e-6)
        assert model.evaluate(x, y)["accuracy"] == (found == y).mean() > 0.9
    else:
        expected = outputs * y.std(axis=0) + y.mean(axis=0)
        np.testing.assert_allclose(found, expected[:, 0] if y.ndim == 1 else expected, rtol=1e-5, atol=1e-3)
        scores = model.evaluate(x, y)
        assert scores["rmse"] == pytest.approx(np.sqrt(((found - y) ** 2).mean()), rel=1e-9)
        assert scores["r2"] > 0.9
        with pytest.raises(UsageError, match="--proba: the model predicts numbers"):
            model.predict_proba(x)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", FRAME, CLASSES)
    other = FRAME[["c", "when", "b"]].assign(more="x")
    np.testing.assert_array_equal(model.predict(other), model.predict(FRAME))


def test_the_average_is_used_where_there_is_one(tmp_path: Path) -> None:
    rule = gpuopt.chain(gpuopt.Adam(0.02), gpuopt.EMA(0.99))
    config = Config(**{k: v for k, v in QUICK.items() if k != "lr"}, optimizer=rule)
    result = train(config, data=(X, CLASSES), out=tmp_path / "run", report=False)
    model = load_model(tmp_path / "run")
    assert model.evaluate(X, CLASSES)["loss"] == pytest.approx(result.train_loss, rel=1e-5)
    from safetensors.numpy import load_file

    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert not np.array_equal(model.params["layers"][0]["w"], saved["params/layers.0.w"])
    assert resume(tmp_path / "run", data=(X, CLASSES), epochs=41, report=False).epochs == 41


@dataclass(frozen=True)
class Own(gpuopt.Rule):
    """A rule that can be imported from this module."""

    lr: gpuopt.Hyper = gpuopt.bounded(0.1, 0)

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g, {}


def test_rules_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, Own.__module__, sys.modules[__name__])
    train(Config(optimizer=Own(), epochs=3), out=tmp_path / "run", report=False)
    assert resume(tmp_path / "run", epochs=5, report=False).epochs == 5

    @dataclass(frozen=True)
    class Local(Own):
        pass

    with pytest.raises(UsageError, match="--optimizer Local: could not be resumed: expected a class at the top level"):
        train(Config(optimizer=Local(), epochs=3), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


# What is refused


def test_what_does_not_fit_the_model_is_refused_by_name(tmp_path: Path) -> None:
    frame = FRAME.assign(kind=KINDS)
    model = trained(tmp_path / "run", frame, CLASSES, one_hot=True)
    assert model.prepared.inputs == ("when", "b", "c", "kind=blue", "kind=green", "kind=red")
    for x, message in (
        (frame.drop(columns=["b", "kind"]), "x: has no column b, kind, which the model needs; it has when, c"),
        (
            frame.assign(kind="pink"),
            "column 'kind': row 0 is pink, a category that the training part lacks; it has blue, g",
        ),
        (frame.assign(b="x"), "column 'b': holds text such as 'x', a feature must be numbers"),
        (frame.assign(b=np.nan), "column 'b': row 0 is missing or holds nan"),
        (X, r"x: shape \(120, 3\), expected \(samples, 4\)"),
    ):
        with pytest.raises(UsageError, match=message):
            model.predict(x)
    with pytest.raises(UsageError, match="y: row 2 is 'doch', a label that the training set lacks"):
        model.evaluate(frame[:3], ["ja", "nein", "doch"])
    with pytest.raises(UsageError, match="x has 120 rows and y 3: expected as many"):
        model.evaluate(frame, ["ja"] * 3)
    with pytest.raises(UsageError, match="x: has no rows, expected at least one to compare with"):
        model.evaluate(frame[:0], [])
    with pytest.raises(UsageError, match="y: row 1 holds nan, expected finite numbers"):
        trained(tmp_path / "numbers", X, PRICES, epochs=1).evaluate(X[:2], [1.0, np.nan])
    arrays = trained(tmp_path / "arrays", X, CLASSES)
    with pytest.raises(UsageError, match=r"x: shape \(120, 2\), expected \(samples, 3\): as many features"):
        arrays.predict(X[:, :2])


class Sparse:
    """As far as SciPy's sparse matrices can be told from arrays."""

    def toarray(self) -> NDArray[Any]:
        return X


MASKED = np.ma.masked_array(X, X.mean() < X)
AMISS: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "masked features": (MASKED, CLASSES, {}, "data: x: a masked array, whose masked values would count"),
    "masked targets": (X, np.ma.masked_array(PRICES, PRICES > 0), {}, "data: y: a masked array"),
    "sparse": (Sparse(), CLASSES, {}, "data: x: .*, a sparse matrix, expected a plain array; x.toarray"),
    "ragged": ([[1, 2], [3]], [0, 1], {}, "data: x: list, expected an array"),
    "complex column": (FRAME.assign(b=1j), CLASSES, {}, "column 'b': dtype complex128, a feature must be real numbers"),
    "objects": (
        FRAME.assign(b=[()] * len(FRAME)),
        CLASSES,
        {},
        "column 'b': holds dtype object such as .., a feature must",
    ),
    "numbers and text": (
        X,
        np.array([1, "a"] * (N // 2), object),
        {},
        "data: y: dtype object, with text and numbers in it, expected numbers or text",
    ),
    "fractions": (X, [Fraction(1, 3)] * N, {}, r"data: y: dtype object, with Fraction\(1, 3\) in it"),
    "beyond 64 bits": (X, [10**20] * N, {}, "data: y: dtype object, with 100000000000000000000 in it"),
    "a dict": ({"a": [1], "b": [2]}, [0], {}, r"data: x: dict, expected .*; pandas.DataFrame\(x\) makes a table of it"),
    "fields": (np.zeros(N, [("a", float), ("b", int)]), CLASSES, {}, "x: an array with the fields a, b, expected a pl"),
    "bytes": (X, [b"\xe9"] * N, {}, "y: the byte e9 is no text in utf-8; in cp1252 it would read 'é'"),
    "nothing to fill with": (
        FRAME.assign(b=np.nan),
        CLASSES,
        {"missing": "mean"},
        "column 'b': is missing in each row",
    ),
}


@pytest.mark.parametrize(("x", "y", "options", "message"), AMISS.values(), ids=AMISS)
def test_arrays_and_frames_that_are_amiss(x: Any, y: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_arrays((x, y), **options)


@pytest.mark.parametrize("y", [PRICES, TARGETS["whole numbers"], TARGETS["flags"]], ids=["numbers", "whole", "flags"])
def test_numbers_are_numbers_whatever_holds_them(y: NDArray[Any]) -> None:
    plain = from_arrays((FRAME, y), standardize=True)
    others = [y.astype(object), pd.Series(y, dtype=object)]
    others += [pd.Series(y, dtype="category")] * (plain.classes is not None)
    for other in others:
        found = from_arrays((FRAME.astype(object), other), standardize=True)
        assert found.classes == plain.classes
        np.testing.assert_array_equal(found.train.x, plain.train.x)
        np.testing.assert_array_equal(found.train.y, plain.train.y)


def test_what_pandas_decides_is_said(tmp_path: Path) -> None:
    shuffled = pd.Series(CLASSES, index=np.arange(N)[::-1])
    assert from_arrays((FRAME, shuffled), standardize=True).notes == (
        "x and y have other indices: rows go together by their place",
    )
    (note,) = load(csv(tmp_path / "a.csv", "a,a,y\n1,2,u\n3,4,v\n"), "y").notes
    assert note == "Several columns have the same name and get a number, as in a.1"
    (note,) = from_arrays((FRAME, ["ja"] * N), standardize=True).notes
    assert note == "y: all samples are of one class, ja: there is nothing to tell apart"


def test_text_that_the_standard_output_cannot_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(tmp_path / "run", X, np.where(CLASSES == "ja", "grün", "rot"), epochs=1)
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(UsageError, match=r"the standard output: cannot print '\\xfc' in ascii; --out FILE.csv writes"):
        predict_file(model, tmp_path / "x.npy")


def signed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def harm(file: Path) -> None:
        content = json.loads(file.read_text())
        content.pop("crc32")
        change(content)
        content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
        file.write_text(json.dumps(content))

    return harm


HARMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (signed(lambda c: c.update(format=2)), "of format 2, written by gpuopt .*: a newer gpuopt is needed"),
    "edited": (lambda file: file.write_text(file.read_text().replace("ja", "jo")), "its checksum does not fit"),
    "no JSON": (lambda file: file.write_text("{"), "not readable"),
    "deep": (lambda file: file.write_text("[" * 100_000), "not readable"),
    "something else": (lambda file: file.write_text("[]"), "is not the description of a model"),
    "older": (lambda file: file.unlink(), "has no model.json: the run is of version 0.1.0"),
    "layers": (signed(lambda c: c.update(layers=[3, 9, 2])), "layers of other shapes than model.json says"),
    "huge layers": (signed(lambda c: c.update(layers=[3, 10**12, 2])), "layers of other shapes than model.json says"),
    "classes": (signed(lambda c: c["target"].update(classes=["a", "b", "c"])), "layers that do not fit"),
    "types": (signed(lambda c: c["target"].update(classes=[1, "b"])), "classes of another type"),
    "shift": (signed(lambda c: c["features"].update(shift=[1.0])), "widths, shifts and scales"),
    "a file": (signed(lambda c: c.update(state="../x")), "damaged: .*unknown"),
}


@pytest.mark.parametrize(("harm", "message"), HARMED.values(), ids=HARMED)
def test_models_that_cannot_be_used(tmp_path: Path, harm: Callable[[Path], object], message: str) -> None:
    trained(tmp_path / "run", X, CLASSES)
    harm(tmp_path / "run" / "model.json")
    with pytest.raises(UsageError, match=message) as caught:
        load_model(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run folder: it has no config\.json"):
        load_model(tmp_path)


# The command line

RUN = CliRunner()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUOPT_BACKEND", "numpy")
    FRAME.assign(answer=CLASSES).to_csv("data.csv", index=False)
    FRAME.assign(price=PRICES).to_parquet("prices.parquet")
    return tmp_path


def command(*arguments: str) -> Any:
    return RUN.invoke(app, arguments)


def test_five_commands(files: Path) -> None:
    options = "--standardize --hidden 8 --epochs 40 --lr 0.02 --quiet --no-report --out run"
    assert command("train", "--data", "data.csv", "--target", "answer", *options.split()).exit_code == 0
    model = load_model("run")
    assert command("predict", "run", "data.csv", "--out", "p.csv", "--proba").exit_code == 0
    found = pd.read_csv("p.csv")
    assert list(found) == ["answer", "answer=ja", "answer=nein"]
    np.testing.assert_array_equal(found["answer"], model.predict(FRAME))
    # Products of float32 matrices depend on where these lie in memory.
    np.testing.assert_allclose(found[["answer=ja", "answer=nein"]].to_numpy(), model.predict_proba(FRAME), rtol=1e-4)
    FRAME[["c", "b", "when"]].assign(odd=1).to_csv("more.csv", index=False)
    said = command("predict", "run", "more.csv", "--out", "p.npz")
    assert (said.stdout, said.stderr) == ("", "Not used: column odd\n")
    np.testing.assert_array_equal(np.load("p.npz")["answer"], found["answer"])
    assert command("predict", "run", "more.csv").stdout.splitlines() == ["answer", *found["answer"]]
    shown = command("evaluate", "run", "data.csv").stdout
    assert f"accuracy {(found['answer'] == CLASSES).mean():.4f}" in shown
    assert command("export", "run", "--format", "npz").stdout == "run/model.npz\n"
    before = Path("run/config.json").read_bytes()
    refused = command("export", "run", "--format", "npz", "--out", "run/config.json")
    assert (refused.exit_code, refused.stderr) == (2, "gpuopt: --out run/config.json: expected a file .npz\n")
    assert Path("run/config.json").read_bytes() == before
    refused = command("export", "run", "--format", "tflite")
    assert (refused.exit_code, refused.stderr) == (2, "gpuopt: --format tflite: unknown, expected onnx or npz\n")
    FRAME[["c", "b"]].to_csv("less.csv", index=False)
    refused = command("predict", "run", "less.csv", "--out", "q.csv")
    assert "less.csv: the table: has no column when, which the model needs; it has c, b" in refused.stderr.replace(
        "x:", "the table:"
    )
    assert not Path("q.csv").exists()


def test_labels_beside_an_archive_that_has_them_are_refused(files: Path) -> None:
    np.savez("x.npz", x=X, y=CLASSES)
    np.save("y.npy", CLASSES)
    model = train(Config(hidden=(8,), epochs=2), data=(X, CLASSES), out="run").folder
    assert evaluate_file(load_model(model), "x.npz")[0]["samples"] == len(X)
    with pytest.raises(UsageError, match=r"--labels y\.npy: is for \.npy files, x\.npz is none"):
        evaluate_file(load_model(model), "x.npz", labels="y.npy")


def test_numbers_in_their_own_units(files: Path) -> None:
    options = "--standardize --hidden 8 --epochs 60 --lr 0.02 --no-report --out run"
    said = command("train", "--data", "prices.parquet", "--target", "price", *options.split()).stdout
    model = load_model("run")
    scores = model.evaluate(FRAME, PRICES)
    assert f"R2 {scores['r2']:.4f}, RMSE {scores['rmse']:.6g}"[:12] in said
    assert command("predict", "run", "prices.parquet", "--out", "p.parquet").exit_code == 0
    np.testing.assert_allclose(pd.read_parquet("p.parquet")["price"], model.predict(FRAME), rtol=1e-4)
    shown = command("evaluate", "run", "prices.parquet").stdout
    assert f"RMSE     {scores['rmse']:.6g} (in units of price)" in shown
    assert f"R2       {scores['r2']:.4f}" in shown


# Exports


def applied(arrays: dict[str, NDArray[Any]], x: NDArray[np.float64]) -> Any:
    """What an exported .npz predicts."""
    a = ((np.where(np.isnan(x), arrays["fill"], x) if "fill" in arrays else x) - arrays["shift"]) / arrays["scale"]
    count = sum(name.startswith("w") for name in arrays)
    for i in range(count):
        a = a @ arrays[f"w{i}"] + arrays[f"b{i}"]
        a = np.maximum(a, 0) if i + 1 < count else a
    if "classes" in arrays:
        return arrays["classes"][a.argmax(axis=1)]
    return a[:, 0] * arrays["target_scale"] + arrays["target_shift"]


@pytest.mark.parametrize("y", [CLASSES, PRICES], ids=["classes", "numbers"])
def test_exported_arrays(tmp_path: Path, y: NDArray[Any]) -> None:
    holes = np.where(RANDOM.rand(*X.shape) < 0.1, np.nan, X)
    model = trained(tmp_path / "run", holes, y, missing="mean")
    arrays = dict(np.load(export(model, "npz", tmp_path / "m.npz")))
    found, expected = applied(arrays, holes), model.predict(holes)
    if y is CLASSES:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS)
def test_onnx_gives_the_same(tmp_path: Path, y: NDArray[Any], activation: Any) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    holes = np.where(np.random.RandomState(1).rand(*X.shape) < 0.1, np.nan, X)
    frame = pd.DataFrame(holes, columns=list(FRAME)).assign(kind=KINDS)
    matmul = "float64" if activation == "tanh" else "float32"
    model = trained(
        tmp_path / "run", frame, y, one_hot=True, missing="mean", activation=activation, epochs=3, matmul=matmul
    )
    session = runtime.InferenceSession(str(export(model, "onnx", tmp_path / "m.onnx")))
    given = {"features": model.prepared.matrix(frame, "x")}
    found = dict(zip([out.name for out in session.get_outputs()], session.run(None, given), strict=True))
    if model.classes is None:
        (numbers,) = found.values()
        np.testing.assert_allclose(numbers, model.predict(frame), rtol=1e-5, atol=1e-5 * np.abs(numbers).max())
        return
    np.testing.assert_array_equal(found["label"], model.predict(frame))
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(frame), atol=1e-5)


# What is said of data, and what is learned on the training part alone


def csv(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


SAID: dict[str, tuple[str, str, dict[str, Any], str, Any]] = {
    "semicolons": (
        "d.csv",
        "a;y\n1,5;u\n2,5;v\n",
        {},
        "separated by semicolons, numbers have a decimal comma",
        [1.5, 2.5],
    ),
    "tabs": ("d.csv", "a\ty\n1.5\tu\n2.5\tv\n", {}, "separated by tabs", [1.5, 2.5]),
    "capitals": ("D.CSV", "a,y\n1,u\n2,v\n", {}, "", [1, 2]),
    "index": ("d.csv", ",a,y\n0,5,u\n1,6,v\n", {}, "without a name counts the rows: an index, left out", [5, 6]),
    "missing": ("d.csv", "a,y\n1,u\n,v\n3,v\n", {"missing": "drop"}, "1 of 3 rows miss something", [1, 3]),
    "mean": ("d.csv", "a,y\n1,u\n,v\n3,v\n", {"missing": "mean"}, "", [1, 2, 3]),
    "ignored": ("d.csv", "a,b,y\n1,x,u\n2,z,v\n", {"ignore": ("b",)}, "", [1, 2]),
}


@pytest.mark.parametrize(("name", "text", "options", "said", "x"), SAID.values(), ids=SAID)
def test_tables_as_they_come(tmp_path: Path, name: str, text: str, options: Any, said: str, x: Any) -> None:
    data = load(csv(tmp_path / name, text), "y", **options)
    assert said in " ".join(data.notes)
    np.testing.assert_array_equal(data.train.x[:, 0], x)


def test_encodings(tmp_path: Path) -> None:
    text = "a,y\n1,Café\n2,Thé\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert load(csv(tmp_path / "a.csv", text, encoding), "y").classes == ("Café", "Thé")
    file = csv(tmp_path / "a.csv", text, "cp1252")
    with pytest.raises(
        UsageError, match=r"the byte e9 is no text in utf-8; in cp1252 it would read .*Caf.*--encoding NAME"
    ):
        load(file, "y")
    assert load(file, "y", encoding="cp1252").classes == ("Café", "Thé")
    with pytest.raises(UsageError, match="--encoding latin99: unknown to Python"):
        load(file, "y", encoding="latin99")


def test_text_that_looks_like_numbers_stays_text(tmp_path: Path) -> None:
    data = load(csv(tmp_path / "a.csv", "a,y\n1,007\n2,042\n3,007\n"), "y")
    assert data.classes == ("007", "042")
    assert "Column y has numbers with leading zeros: text" in data.notes
    np.savez(tmp_path / "a.npz", x=np.eye(2), y=np.array(["1", "2"]))
    assert load(tmp_path / "a.npz").classes == ("1", "2")


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.arange(300) * 7, None),
        (np.arange(300) % 10 * 10, 10),
        (np.arange(300) % 15 + 100, 15),
        (np.arange(300) % 30, None),
        (np.arange(900) % 30, 30),
        (np.arange(900) % 30 * 2, None),
        (np.arange(300) * 1.0, None),
    ],
)
def test_whole_numbers_are_classes_where_there_are_few(y: NDArray[Any], classes: int | None) -> None:
    data = from_arrays((np.ones((len(y), 1)) * np.arange(len(y))[:, None], y))
    assert (None if data.classes is None else len(data.classes)) == classes
    other = "--task classification" if classes is None else "--task regression"
    assert any(other in note for note in data.notes)
    assert (from_arrays((np.ones((len(y), 1)), y), task="regression")).classes is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (np.ones((4, 2), "u1"), [0, 1, 0, 1], np.ones((2, 2)), [0, 1]),
            "bytes are scaled to .0, 1.*expected both alike",
        ),
        ((X[:4], [0, 1, 0, 1], X[:2], ["0", "1"]), "y_train holds whole numbers and y_test text: expected both alike"),
        ((X[:4], [0, 1, 0, 1], X[:2], [0.0, 1.0]), "y_train holds whole numbers and y_test floats"),
        ((X[:4],), "data: expected .x, y. or"),
        ((X[:4], [{}] * 4), "data: y: dtype object, with {} in it, expected numbers or text"),
    ],
)
def test_training_and_test_set_are_treated_alike(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_arrays(data)


def test_validation_is_stratified_seeded_and_not_learned_from() -> None:
    y = np.repeat(["a", "b", "c"], [60, 30, 10])
    x = np.arange(100.0)[:, None]
    data = from_arrays((x, y), validation=0.2, seed=3, standardize=True)
    assert data.test is not None
    assert np.bincount(data.test.y).tolist() == [12, 6, 2]
    again, other = (from_arrays((x, y), validation=0.2, seed=seed, standardize=True) for seed in (3, 4))
    np.testing.assert_array_equal(data.train.x, again.train.x)
    assert not np.array_equal(data.train.y, other.train.y) or not np.array_equal(data.train.x, other.train.x)
    inputs = data.train.x.astype(float)
    assert abs(inputs.mean()) < 1e-6
    assert inputs.std() == pytest.approx(1, rel=1e-6)
    assert "Validation: 20 of 100 samples, set apart by seed 3" in data.notes


@pytest.mark.parametrize(
    ("samples", "share", "message"),
    [(5, 0.2, "1 of 5 samples to validate and 4"), (4, 0.9, "to train, expected at least two")],
)
def test_validation_of_one_sample(samples: int, share: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_arrays((X[:samples], PRICES[:samples]), validation=share)


def test_patience_keeps_the_best_state(tmp_path: Path) -> None:
    config = Config(**QUICK | {"epochs": 400, "validation": 0.3, "patience": 5, "lr": 0.1})
    y = RANDOM.randint(2, size=N)  # nothing can be learned
    result = train(config, data=(X, y), out=tmp_path / "run", report=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["test_loss"])
    assert result.epochs == best["epoch"] + 5
    assert f"is that of epoch {best['epoch']}; patience of 5 epochs" in (result.stopped or "")
    assert result.test_loss == pytest.approx(best["test_loss"], rel=1e-6)
    model = load_model(tmp_path / "run")
    assert model.state == "best.safetensors"


def test_patience_needs_something_to_judge_by(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--patience 5: there is no test set to judge by; --validation 0\.2 sets one apart"
    ):
        train(Config(patience=5), data=(X, CLASSES), out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"--patience 5: there is no test set to judge by"):
        train(Config(patience=5), out=tmp_path / "run")


def test_means_are_exact_far_from_zero() -> None:
    x = 1e15 + np.arange(1000.0)[:, None]
    learned = Features(width=1).learned(x, standardize=True)
    assert learned.shift[0] == 1e15 + 499.5
    assert learned.scale[0] == pytest.approx(np.arange(1000.0).std(), rel=1e-12)
    assert len(np.unique(learned(x, "x"))) == 1000


def test_mapped_files_are_prepared_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", CLASSES)
    config = Config(data=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"), **QUICK)
    train(config, out=tmp_path / "whole", report=False)
    monkeypatch.setattr("gpuopt.training.data.loading.LARGEST_SHARE", 0)
    train(config, out=tmp_path / "mapped", report=False)
    from safetensors.numpy import load_file

    whole, mapped = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "mapped"))
    assert all(whole[name].tobytes() == mapped[name].tobytes() for name in whole)
    split = load(config.data or "", labels=config.labels, validation=0.25, standardize=True)
    assert split.test is not None
    assert (len(split.train), len(split.test), type(split.train.x).__name__) == (90, 30, "Rows")
    holes = np.where(np.arange(X.size).reshape(X.shape) == 200, np.nan, X)
    np.save(tmp_path / "x.npy", holes)
    with pytest.raises(UsageError, match=r"x\.npy: row 66 is missing or holds nan"):
        load(config.data or "", labels=config.labels)
    with pytest.raises(UsageError, match=r"has features alone; --labels FILE\.npy has their targets"):
        load(tmp_path / "x.npy")


def test_a_moved_file_is_known_by_its_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=CLASSES)
    config = Config(data=str(tmp_path / "a.npz"), **QUICK | {"epochs": 2})
    train(config, out=tmp_path / "run", report=False)
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    assert resume(tmp_path / "run", data=tmp_path / "b.npz", epochs=3, report=False).epochs == 3
    np.savez(tmp_path / "c.npz", x=X + 1, y=CLASSES)
    with pytest.raises(UsageError, match=r"c\.npz: is not the data that"):
        resume(tmp_path / "run", data=tmp_path / "c.npz", epochs=4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_run_on_arrays_with_dropout_resumes_to_the_bit(tmp_path: Path, dropout: float) -> None:
    config = Config(**QUICK | {"epochs": 6, "dropout": dropout, "weight_decay": 0.1, "class_weights": "balanced"})
    train(config, data=(X, CLASSES), out=tmp_path / "whole", report=False)
    train(replace(config, epochs=3), data=(X, CLASSES), out=tmp_path / "run", report=False)
    resume(tmp_path / "run", data=(X, CLASSES), epochs=6, report=False)
    with pytest.raises(UsageError, match="was trained on arrays"):
        resume(tmp_path / "run", epochs=7)
    from safetensors.numpy import load_file

    whole, run = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "run"))
    assert all(whole[name].tobytes() == run[name].tobytes() for name in whole)


def test_column_names_reach_the_terminal_without_control_characters(tmp_path: Path) -> None:
    file = csv(tmp_path / "a.csv", "a\x1b[31m,b\x07,y\n1,2,u\n")
    with pytest.raises(UsageError) as caught:
        load(file, "z")
    assert not {"\x1b", "\x07"} & set(str(caught.value))
    assert r"a\x1b[31m, b\x07, y" in str(caught.value)


def test_small_tables_get_as_many_epochs_as_it_takes() -> None:
    config = Config(data="x.csv", target="y")
    assert [config.resolved(n).epochs for n in (100, 1000, 100_000)] == [2000, 250, 10]


def test_a_hint_where_features_differ_in_size() -> None:
    assert any("--standardize is likely to help" in note for note in from_arrays((X, CLASSES)).notes)
    assert not from_arrays((X, CLASSES), standardize=True).notes


def test_labels_of_bytes_and_of_large_numbers_and_frames_of_one_column(tmp_path: Path) -> None:
    for y, expected in (
        (CLASSES.astype("S"), CLASSES),
        (np.where(CLASSES == "ja", np.uint64(2**64 - 1), np.uint64(5)), None),
        (pd.DataFrame({"answer": CLASSES}), CLASSES),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        model = trained(folder, X, y)
        np.testing.assert_array_equal(model.predict(X) == (y if expected is None else expected), True)


def test_whole_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    large = 2**53
    x = np.zeros((4, 1))
    far = np.array([large + 1, large, large + 1, large], np.uint64)
    assert from_arrays((x, far, x, far.astype(np.int64))).classes == (large, large + 1)
    for y in (far.astype(float), np.array([1e300, -1e300] * 2)):
        with pytest.raises(
            UsageError, match=r"y: row 0 is .*, a label as a float64, which has lost digits; expected int"
        ):
            from_arrays((x, y), task="classification")
    top = np.array([1, 2**63 + 1] * 2, np.uint64)
    for other in (np.array([-1] * 4), np.array([large + 1] * 4)):  # -1 is none of them, nor is a neighbour
        with pytest.raises(UsageError, match=r"y_test: row 0 is .*, a label that y_train lacks"):
            from_arrays((x, np.where(top == 1, np.uint64(large), top), x, other))
    model = trained(tmp_path / "run", X, np.where(CLASSES == "ja", top[1], top[0]), epochs=1)
    FRAME.to_csv(tmp_path / "x.csv", index=False)
    for name in ("y.parquet", "y.csv"):
        predict_file(model, tmp_path / "x.csv", tmp_path / name)
    for found in (pd.read_parquet(tmp_path / "y.parquet"), pd.read_csv(tmp_path / "y.csv", dtype=np.uint64)):
        assert found["y"].to_list() == model.predict(X).tolist()
    lost = r"Column (key|name) has whole numbers beyond 2\*\*53, whose last digits are lost as features; --ignore"
    for frame in (pd.DataFrame({"key": far.astype(np.int64), "a": 0.5}), pd.DataFrame({"name": far, "a": 0.5})):
        assert any(re.match(lost, note) for note in from_arrays((frame, [0, 1, 0, 1])).notes)
    notes = from_arrays((np.array([[large], [1]] * 2), [0, 1, 0, 1])).notes
    assert any(note.startswith("x has whole numbers beyond 2**53") for note in notes)


def test_numbers_of_numpy_are_numbers() -> None:
    given: Any = {"hidden": np.array([4, 2]), "epochs": np.int64(3), "lr": np.float32(0.5), "standardize": np.True_}
    config = Config(**{**given, "hidden": tuple(given["hidden"])}, data="x.csv")
    assert config == Config(hidden=(4, 2), epochs=3, lr=0.5, standardize=True, data="x.csv")
    assert json.dumps(config.to_json())
    not_one: Any = {"epochs": 1}
    with pytest.raises(TypeError, match=r"config: dict, expected a gpuopt.training.Config"):
        train(not_one)


def test_estimators() -> None:
    from gpuopt.training import PerceptronClassifier, PerceptronRegressor

    classifier = PerceptronClassifier(hidden=(8,), epochs=40, lr=0.02)
    with pytest.raises(UsageError, match="PerceptronClassifier: is not fitted yet"):
        classifier.predict(X)
    assert not hasattr(classifier, "model_")
    assert classifier.epochs == 40  # type: ignore[attr-defined]
    assert type(classifier)(**classifier.get_params()).get_params() == classifier.get_params()
    assert classifier.fit(X, CLASSES).score(X, CLASSES) == (classifier.predict(X) == CLASSES).mean() > 0.9
    assert classifier.classes_.tolist() == ["ja", "nein"]
    with pytest.raises(ValueError, match=r"PerceptronClassifier: epoch: no such option .did you mean 'epochs'"):
        classifier.set_params(epoch=3)
    for option in ("epoch", "task"):
        with pytest.raises(ValueError, match=f"PerceptronClassifier: {option}: no such option"):
            PerceptronClassifier(**cast("Any", {option: 3})).fit(X, CLASSES)
    assert PerceptronRegressor().set_params(**classifier.get_params()).fit(X, PRICES).score(X, PRICES) > 0.5


def test_estimators_in_scikit_learn() -> None:
    pytest.importorskip("sklearn", minversion="1.6")
    from sklearn import base, exceptions, model_selection

    from gpuopt.training import PerceptronClassifier, PerceptronRegressor

    classifier = PerceptronClassifier(hidden=(4,), epochs=2)
    with pytest.raises(exceptions.NotFittedError, match="PerceptronClassifier: is not fitted yet"):
        classifier.predict(X)
    assert not hasattr(classifier, "n_features_in_")
    assert base.clone(classifier).get_params() == classifier.get_params()
    search = model_selection.GridSearchCV(classifier, {"lr": [0.1, 0.01]}, cv=2).fit(FRAME[["b"]], CLASSES)
    assert search.best_estimator_.feature_names_in_.tolist() == ["b"]
    assert not hasattr(classifier.fit(X, CLASSES), "feature_names_in_")
    assert PerceptronRegressor().__sklearn_tags__().target_tags.multi_output


def test_frames_of_other_libraries() -> None:
    import pyarrow as pa

    from gpuopt.training import PerceptronClassifier

    table = pa.table({"b": FRAME["b"].to_numpy(), "when": FRAME["when"].to_numpy()})
    classifier = PerceptronClassifier(hidden=(4,), epochs=2).fit(table, pa.array(list(CLASSES)))
    assert classifier.feature_names_in_.tolist() == ["b", "when"]
    np.testing.assert_array_equal(classifier.predict(table), classifier.predict(table.to_pandas()))
    with pytest.raises(UsageError, match="y: None, expected numbers or text"):
        classifier.fit(table, None)


def test_labels_are_known_by_their_checksum_too(tmp_path: Path) -> None:
    x, y = RANDOM.randn(60, 3), RANDOM.randint(2, size=60)
    for name, array in {"x": x, "y": y, "other": 1 - y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    config = Config(data=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"), epochs=2, device="cpu")
    train(config, out=tmp_path / "run", report=False)
    (tmp_path / "there").mkdir()
    for name in ("x", "y"):
        (tmp_path / f"{name}.npy").rename(tmp_path / "there" / f"{name}.npy")
    with pytest.raises(UsageError, match=r"y\.npy: No such file"):
        resume(tmp_path / "run", data=tmp_path / "there" / "x.npy", epochs=3)
    with pytest.raises(UsageError, match=r"other\.npy: is not the data that the run .* was started with"):
        resume(tmp_path / "run", data=tmp_path / "there" / "x.npy", labels=tmp_path / "other.npy", epochs=3)
    moved = tmp_path / "there" / "y.npy"
    assert resume(tmp_path / "run", data=tmp_path / "there" / "x.npy", labels=moved, epochs=3).epochs == 3


def test_a_schedule_that_was_chosen_by_hand_is_stretched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Hand(Callback):
        def step(self, training: Any) -> None:
            if training.optimizer.steps == 2:
                training.tune("hand", lr="cosine")

    config = Config(optimizer="SGD", lr=0.5, epochs=4, hidden=(4,), device="cpu", report_every=1)
    train(config, out=tmp_path / "run", callbacks=[Hand()], report=False)
    resume(tmp_path / "run", epochs=8, report=False)
    assert "lr: the schedule that was chosen while it ran is stretched, 2 times as long" in caplog.text
    rates = [row["lr"] for row in rows(tmp_path / "run")]
    assert min(rates) > 0.01
    assert rates[-1] < rates[-2] < rates[-3]
