"""Rows of parquet files one at a time, as the Hugging Face hub stores datasets.

Memory: one row group a file that is being read, at about twice its size, because writers put all
photos of a row group into one page. Rows in order cost one pass over a file; a row before the last
one costs decoding its row group again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from kvfix.data.pictures.read import read_picture
from kvfix.wording import cause


class NumberedRow(NamedTuple):
    """One row of a file."""

    number: int  # within the file
    cells: dict[str, Any]


def read_rows(
    path: Path, *, required: Sequence[str], optional: Sequence[str] = (), first: int = 0
) -> Iterator[NumberedRow]:
    """Rows of a parquet file from row `first` on, with these columns; row groups before are unread.

    A broken file, or one without a required column, is a ValueError.
    """
    import pyarrow as pa  # 0.1 s to import, and only wanted here
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            names = file.schema_arrow.names
            if missing := [c for c in required if c not in names]:
                raise ValueError(
                    f"{path}: expected the columns {', '.join(required)}, found no "
                    f"{', '.join(missing)} among {', '.join(names)}"
                )
            columns = [c for c in (*required, *optional) if c in names]
            start = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if start + rows > first:
                    batches = file.iter_batches(1, row_groups=[group], columns=columns)
                    for number, batch in enumerate(batches, start=start):
                        if number >= first:
                            yield NumberedRow(number, batch.to_pylist()[0])
                start += rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: expected a parquet file, found a broken one ({cause(error, 150)})"
        ) from error


class _Position(NamedTuple):
    last: NumberedRow
    rest: Iterator[NumberedRow]


@dataclass
class RowReader:
    """Rows of several files in any order; in each, the next row and the same one again cost
    nothing.
    """

    required: Sequence[str]  # columns, as in `read_rows`
    optional: Sequence[str] = ()
    _at: dict[Path, _Position] = field(default_factory=dict, init=False, repr=False)

    def row(self, path: Path, number: int) -> dict[str, Any]:
        """The cells of row `number` of a file; raises as `read_rows`, or if it has fewer rows."""
        at = self._at.pop(path, None)
        if at is None or at.last.number > number:
            rows = read_rows(path, required=self.required, optional=self.optional, first=number)
            at = _Position(NumberedRow(-1, {}), rows)
        row = at.last
        while row.number < number:
            following = next(at.rest, None)
            if following is None:
                raise ValueError(
                    f"{path}: expected row {number}, found fewer; the file was changed"
                )
            row = following
        self._at[path] = _Position(row, at.rest)
        return row.cells


def encoded_image(cell: object) -> bytes | None:
    """The encoded image of a cell of the hub's image type; None where it holds no bytes."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) and data else None


def decode_image(data: bytes, where: str) -> Image.Image:
    """An encoded image as upright RGB, or a BadUnit that begins with `where`."""
    return read_picture(data, where=where, expected="an image").image
