"""Tables, ``.csv`` and ``.parquet``, into data frames; what was found out about them is said."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import mmap
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from gpuopt.errors import UsageError
from gpuopt.limits import expect_memory, expect_room
from gpuopt.suggest import printable
from gpuopt.training.data.preparation import listed
from gpuopt.training.data.texts import is_number

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import pandas as pd

__all__ = ["TABLES", "needing", "read_table"]

TABLES = {".csv", ".parquet"}
MOST_COLUMNS = 30_000
"""Of a table: pandas takes 50 microseconds for each, however short it is."""
HEAD = 4 << 20
"""Characters at the beginning of a CSV file, which hold its first rows."""
BYTES_A_FIELD = 24
"""Of a CSV file while it is parsed: where it stands in the text, and its number."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as the next one does
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NO_TEXT = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"\x1f\x8b": "packed by gzip",
    b"PAR1\x15": "a Parquet file",
    b"ARROW1\0\0": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3\0": "a database",
    b"BZh91AY": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"%PDF-": "a PDF",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"version https://git-lfs": "a pointer of Git LFS, whose file `git lfs pull` gets",
}
"""What a file is that begins so, in small letters or as it is, whatever it is called."""
DECIMAL_COMMA, DECIMAL_POINT = (
    re.compile(rf'[;\t|\n\r"] *[-+]?\d*{mark}\d+ *(?=[;\t|\n\r"]|$)') for mark in (",", r"\.")
)
DECLARED = re.compile(r'"?sep=([,;\t|])"?', re.IGNORECASE)
"""What spreadsheets write into the first line."""
LEADING_ZERO = r"\s*[-+]?0\d+\s*"
"""Text that looks like a number: as one, a postal code or an article number would lose its zeros."""
LEADING_ZEROS = re.compile(rb'[,;|\t\n\r" ][-+]?0\d+(?:[,;|\t\n\r" ]|$)')


def read_table(
    path: Path,
    *,
    encoding: str | None = None,
    target: str | None = None,
    text: Collection[str] = (),
    ignored: Collection[str] | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a table: a data frame whose columns have text as names, and what was taken for what.

    The target must be there at most once; columns of `text` hold text, whatever it looks like; those that are `ignored` may hold
    anything (None: all may, and which are needed is found out later). Without an encoding, UTF-8, or what a mark says.
    """
    is_csv, notes = path.suffix.lower() == ".csv", list[str]()
    with needing("data", f"reading {path.suffix} files"):
        frame = (
            _csv(path, encoding, target, text, notes) if is_csv else _parquet(path, encoding, target, ignored, notes)
        )
    frame.columns = [str(column) for column in frame.columns]
    return frame, tuple(notes)


@contextlib.contextmanager
def needing(extra: str, what: str, otherwise: str = "") -> Iterator[None]:
    """Turn the lack of a library of an extra, or the failure to load it, as for want of memory, into a UsageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        cure = f'run `pip install "gpuopt[{extra}]"`{otherwise}'
        raise UsageError(f"{what} needs {error.name}, which is not installed; {cure}") from None
    except ImportError as error:
        why = printable(" ".join(str(error).split()), 200)
        raise UsageError(f"{what} needs {error.name or extra}, which cannot be loaded ({why})") from None


def _csv(path: Path, encoding: str | None, target: str | None, text: Collection[str], notes: list[str]) -> pd.DataFrame:
    import pandas as pd

    chosen = _encoding(path) if encoding is None else encoding
    try:
        with path.open(encoding=chosen, errors="replace" if encoding is None else "strict", newline="") as file:
            head = file.read(HEAD)
    except LookupError:
        expected = "expected a name such as cp1252 or utf-16"
        raise UsageError(f"--encoding {encoding}: unknown to Python, {expected}") from None
    if "\0" in head:
        cure = "UTF-16 and UTF-32 without a mark are read with --encoding utf-16-le, say"
        raise UsageError(f"holds bytes 0, expected text; {cure}")
    skipped, declared, head = _above(head, notes)
    separator, rows = _rows(head, target, declared)
    size, fields = path.stat().st_size, max(1, sum(head.count(mark) for mark in (separator, "\n")))
    expect_memory("the table", size + BYTES_A_FIELD * size * fields / max(1, len(head)))
    decimal = "."
    if separator != ",":
        below = head.partition("\n")[2]  # the header
        if DECIMAL_COMMA.search(f"\n{below}") and not DECIMAL_POINT.search(f"\n{below}"):
            decimal = ","
        commas = ", numbers have a decimal comma" if decimal == "," else ""
        notes.append(f"Columns are separated by {SEPARATORS[separator]}{commas}")
    if number := next(filter(is_number, rows[0]), None):
        notes.append(
            f"The first row is taken for the names of the columns, though it holds the number {printable(number)}"
        )
    if twice := [name for name, count in Counter(rows[0]).items() if count > 1 and name]:
        notes.append(f"Several columns have the same name and get a number, as in {printable(twice[0])}.1")
    options: dict[str, Any] = {"sep": separator, "decimal": decimal, "encoding": chosen}
    options |= {"low_memory": False, "skiprows": skipped}
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(text, str), **options)
    except pd.errors.ParserError as error:
        why = printable(" ".join(str(error).split()), 200)
        cure = f"a field that holds {SEPARATORS[separator]} or line ends must stand in quotes, and each quote must be closed"
        raise UsageError(f"not a readable .csv file ({why}); {cure}") from None
    if _has_leading_zeros(path, chosen):
        numbers = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name].dtype)]
        again = pd.read_csv(path, dtype=str, usecols=numbers, **options) if numbers else frame[[]]
        zeros = [name for name in numbers if again[name].str.fullmatch(LEADING_ZERO).any()]
        for name in zeros:
            frame[name] = again[name]
        if zeros:
            notes.append(f"Column {listed(zeros)} has numbers with leading zeros: text")
    return frame


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(64)
    plain = begin.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if what := next((what for mark, what in NO_TEXT.items() if begin.startswith(mark) or plain.startswith(mark)), None):
        raise UsageError(f"is {what} by its first bytes, expected text with commas, as a spreadsheet exports it")
    return next((name for mark, name in MARKS.items() if begin.startswith(mark)), "utf-8")


def _above(head: str, notes: list[str]) -> tuple[int, str | None, str]:
    """How many lines stand above the header, what separates columns if one of them says so, and the text below them."""
    if not head.lstrip('" \r\n')[:4].lower().startswith(("#", "sep=")):
        return 0, None, head
    lines = io.StringIO(head, newline=None).readlines()
    declared = DECLARED.fullmatch(lines[0].strip(" \n"))
    count = int(declared is not None)
    marked = [count + i for i, line in enumerate(lines[count:]) if line.strip()]
    comments = list(itertools.takewhile(lambda i: lines[i].lstrip().startswith("#"), marked))
    below = lines[marked[len(comments)]] if len(marked) > len(comments) else "0"
    if comments and any(is_number(field.strip('" \n')) for field in re.split(r"[,;\t|]", below)):
        comments.pop()  # above numbers it is the header itself, as numpy.savetxt writes it
    if comments:
        count = comments[-1] + 1
        told = printable(" ".join(lines[comments[0]].split()), 60)
        notes.append(f"Lines above the header that begin with # are left out, {len(comments)} as {told}")
    return count, declared and declared[1], "".join(lines[count:])


def _rows(head: str, target: str | None, declared: str | None = None) -> tuple[str, list[list[str]]]:
    """What separates the columns, and the first three rows: pandas shifts the columns of a row that is longer than the header."""
    text = head.lstrip(" \r\n")
    if not text and len(head) < HEAD:
        raise UsageError("is empty, expected a header and rows")
    found: dict[str, list[list[str]]] = {}
    separators = [",", *(one for one in SEPARATORS if one != "," and one in text.partition("\n")[0])]
    separators = [declared] if declared else separators
    for separator in separators:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        given = (line for line in lines if len(line) > 1 or "".join(line).strip(" \t"))
        try:
            found[separator] = list(itertools.islice(given, 3))
        except csv.Error:
            if separator == separators[0]:
                raise
    # A comma, unless the header has none and something else separates each row into as many columns.
    widths = {separator: {len(row) for row in rows} for separator, rows in found.items()}
    others = [s for s, own in widths.items() if len(own) == 1 and max(own) > 1]
    header = next(iter(found[separators[0]]), [])
    separator = separators[0] if len(header) > 1 or not others else others[0]
    rows = found[separator]
    _expect_columns(max(map(len, rows), default=0), rows[0] if rows else [], target)
    if not rows or (len(rows) < 3 and len(head) == HEAD):  # the last one may be cut
        raise UsageError(f"expected a header and the first rows in its first {HEAD:,} characters")
    for number, row in enumerate(rows[1:]):
        if len(row) > len(rows[0]):
            shown = f"the header {len(rows[0]):,}, {listed(rows[0], 3)}"
            raise UsageError(f"row {number} has {len(row):,} fields, {shown}: expected as many")
    return separator, rows


def _has_leading_zeros(path: Path, encoding: str) -> bool:
    """Whether there may be some: a search of a moment, in place of reading all as text."""
    if b"0,".decode(encoding, "replace") != "0,":  # as in UTF-16
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return LEADING_ZEROS.search(content) is not None


def _parquet(
    path: Path, encoding: str | None, target: str | None, ignored: Collection[str] | None, notes: list[str]
) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gpuopt.training.data.arrow import with_holes
    from gpuopt.training.data.parquet import unpacked

    if encoding is not None:
        raise UsageError(f"--encoding {encoding}: is for .csv files, expected none")
    about, size = pq.read_metadata(path), path.stat().st_size
    _expect_columns(about.num_columns, [], None)
    schema = about.schema.to_arrow_schema()
    names = schema.names
    _expect_columns(len(names), names, target)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"has {names.count(twice)} columns {printable(repr(twice))}, expected each name once")
    nested = [field for field in schema if pa.types.is_nested(field.type)]
    for field in nested:
        if field.name == target or (ignored is not None and field.name not in ignored):
            what = f"holds {printable(field.type)}, expected numbers or text"
            raise UsageError(f"column {printable(repr(field.name))}: {what}; --ignore leaves a column out")
    if not about.num_rows:
        return schema.empty_table().to_pandas()
    expect_room("the table", 8 * about.num_rows * about.num_columns, size)
    with path.open("rb") as file:
        expect_room("the table", 2 * unpacked(file), size)  # a page, and what is made of it
    left = {field.name: None for field in nested}
    flat = [name for name in names if name not in left]
    with pq.ParquetFile(path, metadata=about, read_dictionary=flat) as file:  # repeated texts once
        frame = with_holes(file.read(flat if nested else None)).assign(**left)
    index = [name for name in frame.index.names if name is not None]
    wanted = [name for name in index if ignored is None or name == target]
    if left_out := [name for name in index if name not in wanted and name in names]:
        notes.append(f"Column {listed(left_out)} is the index of the data frame and left out")
    return frame.reset_index(wanted).reset_index(drop=True) if index else frame


def _expect_columns(count: int, names: list[str], target: str | None) -> None:
    if target is not None and (several := names.count(target)) > 1:
        raise UsageError(f"has {several} columns {printable(repr(target))}, expected one to predict")
    if count > MOST_COLUMNS:
        raise UsageError(f"a table of {count:,} columns, expected at most {MOST_COLUMNS:,}; numpy.savez packs more")
