"""Data: the spiral is the book's, files come out as they went in, and what cannot be used is refused by name."""

import decimal
import gzip
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuopt.training import Config, UsageError, load, load_model, spiral, train
from gpuopt.training.data.loading import from_arrays
from gpuopt.training.export import export
from gpuopt.training.predicting import predict_file

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
Y = np.array([0, 1, 1])


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


# The spiral


def create_data(samples: int, classes: int) -> tuple[Any, Any]:
    """As the package nnfs has it, after its init(): seed 0, randn and zeros in float32."""
    random = np.random.RandomState(0)
    x = np.zeros((samples * classes, 2), dtype="float32")
    y = np.zeros(samples * classes, dtype="uint8")
    for class_number in range(classes):
        ix = range(samples * class_number, samples * (class_number + 1))
        r = np.linspace(0.0, 1, samples)
        noise = random.randn(samples).astype("float32")
        t = np.linspace(class_number * 4, (class_number + 1) * 4, samples) + noise * np.float32(0.2)
        x[ix] = np.c_[r * np.sin(t * 2.5), r * np.cos(t * 2.5)]
        y[ix] = class_number
    return x, y


@pytest.mark.parametrize(("samples", "classes"), [(100, 3), (7, 5)])
def test_the_spiral_is_the_books_to_the_bit(samples: int, classes: int) -> None:
    x, y = create_data(samples, classes)
    data = spiral(np.random.RandomState(0), samples, classes)
    assert data.train.x.dtype == np.float32
    assert data.train.x.tobytes() == x.tobytes()
    np.testing.assert_array_equal(data.train.y, y)
    assert (data.features, data.outputs, data.classes) == (2, classes, tuple(range(classes)))


# Files


def test_a_set_with_a_test_set(path: Path) -> None:
    data = load(npz(path, x_train=X, y_train=Y, x_test=X[:2] + 1, y_test=Y[1:]))
    assert data.test is not None
    assert (data.name, len(data.train), len(data.test)) == ("data", 3, 2)
    np.testing.assert_array_equal(data.train.x, X.astype(np.float32))
    np.testing.assert_array_equal(data.test.y, [1, 1])


@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
def test_a_set_without(path: Path, names: tuple[str, str]) -> None:
    assert load(npz(path, **dict(zip(names, (X, Y), strict=True)), more=X)).test is None


@pytest.mark.parametrize("dtype", ["?", "i1", "i8", "u2", "f2", "f4", "f8", ">f4"])
def test_features_of_every_real_dtype_keep_their_values(path: Path, dtype: str) -> None:
    x = X.astype(dtype)
    out = load(npz(path, x=x, y=Y)).train.x
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, x.astype(np.float32))


def test_images_are_flattened_and_scaled(path: Path) -> None:
    images = np.array([[[0, 51], [102, 255]]] * 2, dtype=np.uint8)
    out = load(npz(path, x=images, y=[0, 1])).train.x
    np.testing.assert_allclose(out, [[0, 0.2, 0.4, 1]] * 2, rtol=1e-6)
    assert out.max() == 1


def test_standardized_features_have_mean_0_and_deviation_1_over_the_training_set(path: Path) -> None:
    x = np.array([[1.0, 7, 100], [2, 7, 300], [6, 7, 500]])
    data = load(npz(path, x_train=x, y_train=Y, x_test=x[:1], y_test=Y[:1]), standardize=True)
    assert data.test is not None
    np.testing.assert_allclose(data.train.x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train.x.std(axis=0), [1, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(data.test.x, data.train.x[:1])


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        ([3, 1, 3], (1, 3), [1, 0, 1]),
        ([[3], [1], [3]], (1, 3), [1, 0, 1]),
        (np.array([3, 1, 3], np.uint8), (1, 3), [1, 0, 1]),
        ([-1, 1, -1], (-1, 1), [0, 1, 0]),
        ([True, False, True], (False, True), [1, 0, 1]),
        (["cat", "ant", "cat"], ("ant", "cat"), [1, 0, 1]),
    ],
)
def test_labels_become_indices(path: Path, labels: Any, classes: tuple[Any, ...], indices: list[int]) -> None:
    data = load(npz(path, x=X, y=labels))
    assert data.classes == classes
    np.testing.assert_array_equal(data.train.y, indices)
    assert data.outputs == 2


@pytest.mark.parametrize(
    ("targets", "task", "outputs"),
    [
        ([0.5, 1.5, 2.5], "auto", 1),
        ([[0.5, 1], [1.5, 2], [2.5, 3]], "auto", 2),
        ([1.0, 2.0, 3.0], "regression", 1),
        ([1, 2, 3], "regression", 1),
    ],
)
def test_numbers_are_to_be_predicted(path: Path, targets: Any, task: Any, outputs: int) -> None:
    data = load(npz(path, x=X, y=targets), task=task)
    assert data.classes is None
    assert data.train.y.dtype == np.float32
    expected = np.reshape(targets, (3, -1))
    np.testing.assert_allclose(data.train.y, (expected - expected.mean(axis=0)) / expected.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.target.numbers(data.train.y), expected, rtol=1e-6)
    assert data.outputs == outputs
    raw = load(path, task=task, scale_target=False)
    np.testing.assert_array_equal(raw.train.y, expected)


TABLE = pd.DataFrame({"a": [1, 2, 3], "kind": ["cat", "ant", "cat"], "b": [0.5, 1.5, 2.5]})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("target", "features", "classes"),
    [("kind", ["a", "b"], ("ant", "cat")), ("b", ["a"], None), ("a", ["b"], (1, 2, 3))],
)
def test_tables(tmp_path: Path, suffix: str, target: str, features: list[str], classes: Any) -> None:
    file = tmp_path / f"table.{suffix}"
    table = TABLE if target == "kind" else TABLE.drop(columns="kind")
    table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file)
    data = load(file, target)
    np.testing.assert_array_equal(data.train.x, TABLE[features].to_numpy(np.float32))
    assert (data.classes, data.features) == (classes, len(features))


NULLABLE = {"a": [3, 1, 2], "b": [0.5, 1.5, 2.5], "c": [True, False, True], "y": [True, False, True]}


def test_columns_of_several_dtypes(tmp_path: Path) -> None:
    table = pd.DataFrame(NULLABLE)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    table.convert_dtypes().to_parquet(tmp_path / "b.parquet")  # pandas' own integers, floats and booleans
    for name in ("a.csv", "a.parquet", "b.parquet"):
        data = load(tmp_path / name, "y")
        np.testing.assert_array_equal(data.train.x, [[3, 0.5, 1], [1, 1.5, 0], [2, 2.5, 1]])
        assert (data.classes, data.train.y.tolist()) == ((False, True), [1, 0, 1])
    table.convert_dtypes().mask(table.a == 2).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"column '[ay]': row 2 is missing"):
        load(tmp_path / "b.parquet", "y")


def test_bytes_in_a_table_are_scaled_as_images_are(tmp_path: Path) -> None:
    pd.DataFrame({"a": np.array([0, 255], np.uint8), "y": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", "y").train.x.tolist() == [[0], [1]]


# What is refused

Write = Callable[[Path], object]


def text(content: str) -> Write:
    return lambda path: path.write_text(content)


def arrays(**content: Any) -> Write:
    return lambda path: npz(path, **content)


def cut(path: Path) -> None:
    whole = npz(path, x=np.random.RandomState(0).rand(50, 50), y=np.arange(50) % 2).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def flipped(path: Path) -> None:
    content = bytearray(npz(path, x=X, y=Y).read_bytes())
    content[150] ^= 255
    path.write_bytes(content)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, X)


def no_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", b"not an array")
        file.writestr("y.npy", b"not an array")


def column(dtype: str) -> Write:
    """A table with a target of that type."""
    return lambda path: pd.DataFrame({"a": [1, 2, 3], "y": np.arange(3).astype(dtype)}).to_parquet(path)


def twice(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array([1, 2])] * 3, names=["a", "y", "y"]), path)


def nested(path: Path) -> None:
    pd.DataFrame({"a": [1, 2], "b": [[1], [2]], "y": ["u", "v"]}).to_parquet(path)


def bytes_to_predict(path: Path) -> None:
    pd.DataFrame({"a": [1, 2], "y": [b"u", b"v"]}).to_parquet(path)


NAN, INF = np.where(X == 4, np.nan, X), np.where(X == 5, np.inf, X)
REFUSED: dict[str, tuple[str, Write, dict[str, Any], str]] = {
    "missing": ("a.npz", lambda _: None, {}, "No such file"),
    "a folder": ("a.npz", lambda path: path.mkdir(), {}, "not a regular file"),
    "empty": ("a.npz", text(""), {}, "not a zip archive"),
    "no zip": ("a.npz", text("x,y\n1,2\n"), {}, "not a zip archive"),
    "one array": ("a.npz", one_array, {}, "not a zip archive"),
    "truncated": ("a.npz", cut, {}, "not "),
    "damaged": ("a.npz", flipped, {}, "not a readable .npz"),
    "no arrays inside": ("a.npz", no_arrays, {}, "x: is no array"),
    "pickled": ("a.npz", arrays(x=np.array([{}, {}], dtype=object), y=[0, 1]), {}, "Python objects"),
    "another kind": ("a.txt", text("1 2"), {}, "expected a file .npz, .csv, .parquet, or .npy"),
    "no arrays": ("a.npz", arrays(), {}, "has no array 'x': expected x_train and y_train"),
    "other names": ("a.npz", arrays(X=X, Y=Y), {}, "has no array 'x'.*it has X, Y"),
    "no y": ("a.npz", arrays(x=X), {}, "has no array 'y'"),
    "no y_train": ("a.npz", arrays(x_train=X, y=Y), {}, "has no array 'y_train'"),
    "no y_test": ("a.npz", arrays(x_train=X, y_train=Y, x_test=X), {}, "has no array 'y_test'"),
    "no x_test": ("a.npz", arrays(x_train=X, y_train=Y, y_test=Y), {}, "has no array 'x_test'"),
    "NaN": ("a.npz", arrays(x=NAN, y=Y), {}, r"x: row 1 is missing or holds nan, expected finite .*--missing mean"),
    "infinite": ("a.npz", arrays(x=INF, y=Y), {}, r"x: row 2 holds inf, expected finite"),
    "too large": ("a.npz", arrays(x=X * 1e300, y=Y), {}, r"x: row 0 holds 1e\+300, expected finite"),
    "NaN to test": (
        "a.npz",
        arrays(x_train=X, y_train=Y, x_test=NAN, y_test=Y),
        {},
        "x_test: row 1 is missing or holds nan",
    ),
    "text of bytes": (
        "a.npz",
        arrays(x=X, y=[b"\xff"] * 3),
        {},
        "the byte ff is no text in utf-8.*expected text as str",
    ),
    "NaN targets": ("a.npz", arrays(x=X, y=[0.5, 1.5, np.nan]), {}, "y: row 2 holds nan"),
    "lengths": ("a.npz", arrays(x=X, y=Y[:2]), {}, "x has 3 rows and y has 2"),
    "a single target": ("a.npz", arrays(x=X, y=1), {}, "x has 3 rows and y has a single value"),
    "flat": ("a.npz", arrays(x=X[0], y=[0, 1]), {}, r"x: shape \(2,\), expected \(samples, features\)"),
    "no rows": ("a.npz", arrays(x=X[:0], y=Y[:0]), {}, r"x: shape \(0, 2\), expected at least one sample"),
    "no features": ("a.npz", arrays(x=X[:, :0], y=Y), {}, r"x: shape \(3, 0\), expected at least one sample"),
    "complex": ("a.npz", arrays(x=X + 0j, y=Y), {}, "x: dtype complex128, expected integers or floats"),
    "text as features": ("a.npz", arrays(x=X.astype(str), y=Y), {}, "x: dtype <U.*, expected integers or floats"),
    "widths": ("a.npz", arrays(x_train=X, y_train=Y, x_test=X[:, :1], y_test=Y), {}, "x_test: 1 features.*expected 2"),
    "one-hot": ("a.npz", arrays(x=X, y=np.eye(3, dtype=int)), {}, r"y: shape \(3, 3\), with a single 1 .*np.argmax"),
    "one-hot floats": (
        "a.npz",
        arrays(x=X, y=np.eye(3)),
        {},
        r"y: shape \(3, 3\), with a single 1 .*--task regression",
    ),
    "several labels": ("a.npz", arrays(x=X, y=[[1, 2]] * 3), {}, r"y: shape \(3, 2\), expected one label"),
    "a text of each": (
        "a.npz",
        arrays(x=np.ones((25, 1)), y=[f"{i}%" for i in range(25)]),
        {},
        "y: 25 different texts in 25 samples, where row 0 is '0%' .write the number alone.*, .*--task classification takes",
    ),
    "numbers but one": (
        "a.csv",
        text("a,y\n" + "".join(f"1,{i}.5\n" for i in range(25)) + "2,n.a. (7)\n"),
        {"target": "y"},
        r"column 'y': 25 of 26 different values are numbers, but row 25 is 'n.a. \(7\)': expected numbers alone",
    ),
    "a text among numbers": (
        "a.csv",
        text("a,y\n1,1.5\n1,-\n"),
        {"target": "y", "task": "regression"},
        "holds text, expected numbers for --task regression; row 1 is '-'",
    ),
    "an empty column": (
        "a.csv",
        text("a,b,y\n1,,u\n2,,v\n"),
        {"target": "y"},
        "column 'b': is missing in each row; --",
    ),
    "one column": ("a.csv", text("a b y\n1 2 u\n"), {"target": "y"}, "its columns are a b y; columns are separated by"),
    "a class of one": (
        "a.csv",
        text("a,y\n1,u\n2,v\n3,w\n4,x\n"),
        {"target": "y", "validation": 0.5},
        r"0 of 4 samples to validate and 4 to train, .* \(the only sample of a class is one to train\)",
    ),
    "new label": ("a.npz", arrays(x_train=X, y_train=Y, x_test=X, y_test=[0, 7, 1]), {}, "y_test: row 1 is 7"),
    "new text": ("a.npz", arrays(x_train=X, y_train=["a"] * 3, x_test=X, y_test=["a", "a", "b"]), {}, "row 2 is 'b'"),
    "float labels": (
        "a.npz",
        arrays(x=X, y=Y * 1.0),
        {},
        "y: dtype float64, but only whole numbers, few of them: --task cla",
    ),
    "float classes": ("a.npz", arrays(x=X, y=Y + 0.5), {"task": "classification"}, "must be integers or text"),
    "text to predict": ("a.npz", arrays(x=X, y=["a"] * 3), {"task": "regression"}, "y: holds text"),
    "complex targets": ("a.npz", arrays(x=X, y=Y + 1j), {}, "y: dtype complex128"),
    "many labels": (
        "a.npz",
        arrays(x=np.ones((1500, 1)), y=np.arange(1500)),
        {"task": "classification"},
        "1,500 different labels in 1,500",
    ),
    "shapes": (
        "a.npz",
        arrays(x_train=X, y_train=X, x_test=X, y_test=X[:, :1]),
        {"task": "regression"},
        "y_test: shape",
    ),
    "target for arrays": ("a.npz", arrays(x=X, y=Y), {"target": "y"}, "--target y: is for tables"),
    "no target": ("a.csv", text("a,b\n1,2\n"), {}, "say with --target which column to predict; its columns are a, b"),
    "unknown target": ("a.csv", text("size,kind\n1,2\n"), {"target": "knd"}, "no column 'knd' .did you mean 'kind'."),
    "empty table": ("a.csv", text("\n"), {"target": "a"}, "is empty, expected a header and rows"),
    "header alone": ("a.csv", text("a,b\n"), {"target": "b"}, "expected at least one sample"),
    "target alone": ("a.csv", text("b\n1\n2\n"), {"target": "b"}, "expected at least one sample and one feature"),
    "text in a column": ("a.csv", text("a,b\n1,2\nx,3\n"), {"target": "b"}, "column 'a': holds .*must be numbers"),
    "the target, ignored": (
        "a.csv",
        text("a,y\n1,u\n"),
        {"target": "y", "ignore": ("y",)},
        "--ignore y: is what is to be predicted",
    ),
    "a hole": ("a.csv", text("a,b\n1,2\n,3\n"), {"target": "b"}, "column 'a': row 1 is missing or holds nan"),
    "a hole in the target": ("a.csv", text("a,b\n1,2\n3,\n"), {"target": "b"}, "column 'b': row 1 is missing or NaN"),
    "infinite in a table": ("a.csv", text("a,b\n1,2\ninf,3\n"), {"target": "b"}, "row 1 holds inf"),
    "ragged": (
        "a.csv",
        text("a,b\n1,2\n1,2,3,4\n"),
        {"target": "b"},
        "row 1 has 4 fields, the header 2, a, b: expected",
    ),
    "ragged later": (
        "a.csv",
        text("a,b\n" + "1,2\n" * 9 + "1,2,345\n"),
        {"target": "b"},
        "not a readable .csv.*Expected 2 fields in line 11.*a field that holds commas .* must stand in quotes",
    ),
    "wider than the header": ("a.csv", text("a,b,y\n10,1,0,7\n20,2,1,8\n"), {"target": "y"}, "row 0 has 4 fields"),
    "two targets": ("a.csv", text("a,y,y\n1,0,5\n"), {"target": "y"}, "has 2 columns 'y', expected one to predict"),
    "two targets in Parquet": ("a.parquet", twice, {"target": "y"}, "has 2 columns 'y', expected one to predict"),
    "no text": (
        "a.csv",
        lambda path: path.write_bytes(b"a,b\n\x8f\xfe,1\n"),
        {"target": "b"},
        "the byte 8f is no text in utf-8",
    ),
    "dates to predict": (
        "a.parquet",
        column("datetime64[s]"),
        {"target": "y"},
        "dtype datetime64.*expected numbers or t",
    ),
    "bytes to predict": ("a.parquet", bytes_to_predict, {"target": "y"}, "such as b'u', expected .*str.decode"),
    "durations to predict": (
        "a.parquet",
        column("timedelta64[s]"),
        {"target": "y"},
        "dtype timedelta64.* such as 0 days",
    ),
    "beyond float64's squares": (
        "a.csv",
        text("a,y\n1e200,1.5\n2e200,2.5\n"),
        {"target": "y", "standardize": True},
        "column 'a': holds numbers whose squares are beyond float64",
    ),
    "to predict, likewise": (
        "a.csv",
        text("a,y\n1,1.5e200\n2,2.5e200\n"),
        {"target": "y", "task": "regression"},
        "column 'y': holds numbers whose squares are beyond float64",
    ),
    "below float64's squares": (
        "a.csv",
        text("a,y\n1e-200,u\n2e-200,v\n"),
        {"target": "y", "standardize": True},
        "column 'a': holds different numbers whose squares are 0 in float64",
    ),
    "to predict, below": (
        "a.csv",
        text("a,y\n1,1e-200\n2,2e-200\n"),
        {"target": "y"},
        "column 'y': holds different numbers whose squares are 0 in float64",
    ),
    "beyond 64 bits": (
        "a.csv",
        text("a,y\n184467440737095516160,u\n2,v\n"),
        {"target": "y"},
        "column 'a': holds whole numbers beyond 64 bits such as 184467440737095516160",
    ),
    "a zip archive": (
        "a.csv",
        lambda path: npz(path.with_suffix(".npz"), x=X).rename(path),
        {"target": "y"},
        "is a zip archive or",
    ),
    "gzip": (
        "a.csv",
        lambda path: path.write_bytes(gzip.compress(b"a,y\n1,u\n")),
        {"target": "y"},
        "is packed by gzip",
    ),
    **{
        what: ("a.csv", text(content), {"target": "y"}, f"is {what}")
        for what, content in {
            "a web page": "\ufeff\n<!DOCTYPE html>\n<p>a,y</p>\n",
            "XML": "<?xml version='1.0'?>\n<a>1,2</a>\n",
            "a pointer of Git LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        }.items()
    },
    "UTF-16 without a mark": (
        "a.csv",
        lambda path: path.write_text("a,y\n1,u\n", encoding="utf-16-le"),
        {"target": "y"},
        "holds bytes 0, expected text; .*--encoding utf-16-le",
    ),
    "another kind of table": ("a.csv.gz", text("a,y\n1,u\n"), {"target": "y"}, "expected a file .npz, .csv"),
    "nested": ("a.parquet", nested, {"target": "y"}, "column 'b': holds list.*--ignore leaves a column out"),
    "an empty Parquet file": (
        "a.parquet",
        TABLE[:0].to_parquet,
        {"target": "b"},
        "at least one sample",
    ),
    "no share": ("a.npz", arrays(x=X, y=Y), {"validation": 1.0}, "--validation 1.0: expected a share"),
    "no parquet": ("a.parquet", text("a,b\n1,2\n"), {"target": "b"}, "not a readable .parquet"),
    "a comment wider than it seems": (
        "a.csv",
        text("# c\nu,3\nv,4\n"),
        {"target": "b"},
        "row 0 has 2 fields, the header 1",
    ),
    "comments alone": ("a.csv", text("# c\n# d\n"), {"target": "b"}, "no column 'b'"),
    "a separator alone": ("a.csv", text("sep=;\n"), {"target": "b"}, "is empty"),
}


TOLD: dict[str, tuple[str, str]] = {
    "-999": (
        "a,b,c,y\n1,2,-999,u\n-999,3,5,u\n3,999,6,v\n",
        "Column a, c has -999, far from all other numbers; where it means that nothing is known, leave the field empty",
    ),
    "a large one": ("a,y\n1,u\n2,v\n9.96921e+36,u\n", "Column a has 9.96921e+36, far from all other numbers"),
    "the lowest of 32 bits": ("a,y\n1,u\n2,v\n-2147483648,u\n", "Column a has -2147483648, far from all"),
    "9999 to predict": ("a,y\n1,0.5\n2,9999\n3,0.7\n", "Column y has 9999, far from all other numbers"),
    "a last column without a name": ("a,y,\n1,u,\n2,v,\n", "The column without a name is empty and left out"),
    "no header": ("1.5,2,y\n2,3,u\n3,4,v\n", "names of the columns, though it holds the number 1.5"),
    "a shuffled index": (
        ",a,y\n3,1,u\n1,2,v\n2,5,u\n0,6,v\n",
        "without a name has another whole number in each row: an index",
    ),
    "digits that are lost": (
        "a,y\n" + "".join(f"1,{2**53 + 3 * i}\n" for i in range(30)),
        "column 'y' has whole numbers beyond 2**53, whose last digits are lost",
    ),
    "decimal commas that begin late": ("a;y\n" + "1;u\n" * 10 + "2,5;v\n", "numbers have a decimal comma"),
    "comments": ("# by x, y\n\n # on Monday\n\na,y\n1,u\n2,v\n", "begin with # are left out, 2 as # by x, y"),
    "small numbers": ("a,y\n1e-6,u\n2e-6,v\n", "sizes 1.58e-06 to 1.58e-06: --standardize"),
    "one number": ("a,y\n1,2.5\n3,2.5\n", "all samples have the same number: there is nothing to predict"),
}


@pytest.mark.parametrize(("content", "note"), TOLD.values(), ids=TOLD)
def test_odd_tables_are_told(tmp_path: Path, content: str, note: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert note in "\n".join(load(tmp_path / "a.csv", "y").notes)


def test_what_is_predicted_for_is_not_written_over(tmp_path: Path) -> None:
    train(Config(epochs=1), data=(X, Y), out=tmp_path / "run", report=False)
    with (tmp_path / "new.npz").open("wb") as file:
        np.savez(file, x=X)
    before = (tmp_path / "new.npz").read_bytes()
    with pytest.raises(UsageError, match="is the file that is predicted for"):
        predict_file(load_model(tmp_path / "run"), tmp_path / "new.npz", tmp_path / "new.npz")
    assert (tmp_path / "new.npz").read_bytes() == before


@pytest.mark.parametrize("write", [predict_file, lambda model, _, out: export(model, "npz", out)])
def test_what_a_run_was_trained_on_is_not_written_over(tmp_path: Path, write: Callable[..., object]) -> None:
    data = npz(tmp_path / "data.npz", x=X, y=Y)
    other, before = npz(tmp_path / "new.npz", x=X), data.read_bytes()
    train(Config(data=str(data), epochs=1), out=tmp_path / "run", report=False)
    (tmp_path / "link.npz").symlink_to(data)
    for out in (data, tmp_path / "link.npz"):
        with pytest.raises(UsageError, match="is the file that the run was trained on, expected another one"):
            write(load_model(tmp_path / "run"), other, out)
    assert data.read_bytes() == before


READ: dict[str, tuple[str, Write, dict[str, Any], list[list[float]]]] = {
    "UTF-32": ("a.csv", lambda path: path.write_text("a,y\n1,u\n2,v\n", encoding="utf-32"), {}, [[1], [2]]),
    "leading zeros with a sign, in UTF-16 without its mark": (
        "a.csv",
        lambda path: path.write_text("a,y\n-01,u\n 2,v\n", encoding="utf-16-le"),
        {"encoding": "UTF-16LE", "one_hot": True},
        [[0, 1], [1, 0]],
    ),
    "a leading zero at the end": ("a.csv", text("y,a\nu,12\nv,01"), {"one_hot": True}, [[0, 1], [1, 0]]),
    "true and false without the missing ones": (
        "a.csv",
        text("a,y\n1,True\n2,\n3,False\n"),
        {"missing": "drop"},
        [[1], [3]],
    ),
    "decimals": (
        "a.parquet",
        lambda path: pd.DataFrame({"a": [decimal.Decimal("1.5"), None], "y": ["u", "v"]}).to_parquet(path),
        {"missing": "mean"},
        [[1.5], [1.5]],
    ),
    "a declared separator": ("a.csv", text("sep=;\na;y\n1,5;u\n2,5;v\n"), {}, [[1.5], [2.5]]),
    "a declared comma, and a comment": ("a.csv", text('"sep=,"\r# c\r"a","y"\r1,u\r2,v\r'), {}, [[1], [2]]),
    "of numpy.savetxt": ("a.csv", text("# by me\n# a,y\n1.0,2\n3.0,3\n"), {}, [[1], [3]]),
    "an index with a name": (
        "a.parquet",
        lambda path: pd.DataFrame({"a": [1, 2], "y": ["u", "v"]}, pd.Index([3, 5], name="b")).to_parquet(path),
        {},
        [[1], [2]],
    ),
    "an index to predict": (
        "a.parquet",
        lambda path: pd.DataFrame({"a": [1, 2]}, pd.Index(["u", "v"], name="y")).to_parquet(path),
        {},
        [[1], [2]],
    ),
    "a name that begins like a Parquet file": ("a.csv", text("PAR1,y\n1,u\n2,v\n"), {}, [[1], [2]]),
    "nested, ignored": ("a.parquet", nested, {"ignore": ("b",)}, [[1], [2]]),
}


@pytest.mark.parametrize(("file", "write", "options", "expected"), READ.values(), ids=READ)
def test_odd_tables_are_read(
    tmp_path: Path, file: str, write: Write, options: dict[str, Any], expected: list[list[float]]
) -> None:
    write(tmp_path / file)
    np.testing.assert_array_equal(load(tmp_path / file, "y", **options).train.x, expected)


LARGE = (2**53 + 1, 2**53 + 2)
TARGETS: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...] | None]] = {
    "integers of Arrow, some missing": (lambda pa: pa.array([*LARGE, None]), LARGE),
    "integers in a table, some missing": (lambda pa: pa.table({"y": [*LARGE, None]}), LARGE),
    "true and false of Arrow": (lambda _: pd.Series([True, False, None], dtype="bool[pyarrow]"), (False, True)),
    "decimals": (lambda _: pd.Series([decimal.Decimal("1.5"), decimal.Decimal("0.1"), None]), None),
}


@pytest.mark.parametrize(("made", "classes"), TARGETS.values(), ids=TARGETS)
def test_targets_of_other_libraries(
    tmp_path: Path, made: Callable[[Any], Any], classes: tuple[Any, ...] | None
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    y = made(pa)
    found = from_arrays((X, y), missing="drop")
    assert found.classes == classes
    assert [type(label) for label in found.classes or ()] == [type(label) for label in classes or ()]
    if isinstance(y, pa.Table):
        pq.write_table(y.append_column("a", [[1, 2, 3]]), tmp_path / "a.parquet")
        assert load(tmp_path / "a.parquet", "y", missing="drop").classes == classes


def test_an_index_is_told_and_predicted_for(tmp_path: Path) -> None:
    x = pd.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    x.assign(y=Y).set_index("b").to_parquet(tmp_path / "a.parquet")
    assert "Column b is the index of the data frame and left out" in load(tmp_path / "a.parquet", "y").notes
    train(Config(epochs=1), data=(x, Y), out=tmp_path / "run", report=False)
    predict_file(load_model(tmp_path / "run"), tmp_path / "a.parquet", tmp_path / "out.csv")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("y", [[1, "a", 2], pd.Series([1, "a", 2.5]), [True, "a", "b"], [b"a", 1, 2]])
def test_numbers_beside_text_are_no_labels(y: Any) -> None:
    with pytest.raises(UsageError, match=r"text .*expected one"):
        from_arrays((X, y))


def test_true_and_false_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y\nTrue,u\n,v\nFalse,u\n")
    data = load(tmp_path / "a.csv", "y", missing="mean")
    np.testing.assert_array_equal(data.train.x, [[1], [0.5], [0]])


LABELS: dict[str, tuple[list[str], str]] = {
    "spaces": (
        ["u", " u", "u"],
        "column 'y': ' u' and 'u' are two classes, which differ by spaces, capital letters or codes of a letter alone",
    ),
    "capitals": (["yes", "Yes", "yes"], "'Yes' and 'yes' are two classes, which differ by spaces, capital letters"),
    "codes": (["caf\xe9", "cafe\u0301", "caf\xe9"], r"'cafe\u0301' and 'caf\xe9' are two classes"),
}


@pytest.mark.parametrize(("labels", "note"), LABELS.values(), ids=LABELS)
def test_odd_labels_are_told(tmp_path: Path, labels: list[str], note: str) -> None:
    pd.DataFrame({"a": range(len(labels)), "y": labels}).to_csv(tmp_path / "a.csv", index=False)
    assert note in "\n".join(load(tmp_path / "a.csv", "y").notes)
    categories = note.replace("'y'", "'a'").replace("classes", "categories")
    pd.DataFrame({"a": labels, "y": range(len(labels))}).to_csv(tmp_path / "a.csv", index=False)
    notes = "\n".join(load(tmp_path / "a.csv", "y", one_hot=True, task="regression").notes)
    assert categories in notes
    assert "Column a has 2 categories for 3 samples; --ignore a leaves it out" in notes


@pytest.mark.parametrize("x", [[-999.5, 1, 2, 3], [-999, -500, 1, 2], [997, 998, 999, 1], [-999, np.nan, -999, np.nan]])
def test_numbers_that_may_be_some_are_no_stand_ins(x: list[float]) -> None:
    data = from_arrays((np.array([x, [1, 2, 3, 4]]).T, np.arange(4) / 3), missing="mean")
    assert not [note for note in data.notes if "far from" in note]


OBSTACLES = {
    "nothing between thousands": ["1,000", "1,234,567.5", "1.234,5", "1'000", "1 000", "1\u202f000", "0,5", "-,5"],
    "leave the field empty": ["?", "-", "--", ".", "#DIV/0!", "n.a.", "unknown"],
    "a date or time": [
        "2024-01-31",
        "2024-01-31 12:00:00",
        "31.01.2024 12:00",
        "1/2/24",
        "12:30",
        "0:00:01.5",
        "-1 days +23:59:00",
    ],
    "the number alone": ["$5", "0,50 \u20ac", "12%", "3 kg", "(5)", "5-", '="007"'],
    "of ASCII": ["\u22125", "\uff11\uff12", "5\xa0"],
    "--one-hot": ["red", "t0", "C5", "A-1", "yes", "0x1f", "1/2"],
}


@pytest.mark.parametrize("cure", OBSTACLES)
def test_what_keeps_a_text_from_being_a_number_is_told(cure: str) -> None:
    for value in OBSTACLES[cure]:
        with pytest.raises(UsageError, match=f"holds text such as .*; .*{cure}") as caught:
            from_arrays((pd.DataFrame({"a": [1.5, 2.5, value]}), ["u", "v", "u"]))
        assert sum(other in str(caught.value) for other in OBSTACLES) == 1


def test_numbers_as_text_are_told_how_to_become_numbers() -> None:
    with pytest.raises(
        UsageError, match=r"such as '1\.5', .*; .*, \.astype\(float\) of a data frame makes numbers of it"
    ):
        from_arrays((pd.DataFrame({"a": ["1.5", "2.5"]}), ["u", "v"]))


@pytest.mark.parametrize(("name", "write", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, name: str, write: Write, options: dict[str, Any], message: str) -> None:
    file = tmp_path / name
    write(file)
    with pytest.raises(UsageError, match=message) as caught:
        load(file, **options)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_tables_need_an_extra(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b\n1,2\n")
    code = f"import sys; sys.modules['pandas'] = None\nfrom gpuopt.training import load\nload({str(file)!r}, 'b')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pandas, which is not installed; run `pip install "gpuopt[data]"`' in run.stderr
