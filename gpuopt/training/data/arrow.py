"""Frames and columns of Arrow, and of libraries that give such ones, as pandas has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["framed", "with_holes"]


def framed(value: Any) -> Any:
    """A DataFrame or Series of what has ``to_pandas``."""
    import pyarrow as pa

    table = value.to_arrow() if hasattr(value, "to_arrow") else value
    if isinstance(table, pa.Table | pa.RecordBatch):
        return with_holes(table)
    if isinstance(table, pa.Array | pa.ChunkedArray):
        return with_holes(pa.table([table], [""])).iloc[:, 0].rename(getattr(value, "name", None) or None)
    return value.to_pandas()


def with_holes(table: Any) -> pd.DataFrame:
    """A table of Arrow as a frame: whole numbers of which some are missing stay whole, which NumPy has no dtype for."""
    import pandas as pd
    import pyarrow as pa

    frame: pd.DataFrame = table.to_pandas()
    for name in frame.columns:
        at = table.schema.get_field_index(name) if isinstance(name, str) else -1
        if at >= 0 and pa.types.is_integer(table.schema.field(at).type) and table.column(at).null_count:
            is_signed = pa.types.is_signed_integer(table.schema.field(at).type)
            frame[name] = (pd.Int64Dtype() if is_signed else pd.UInt64Dtype()).__from_arrow__(table.column(at))
    return frame
