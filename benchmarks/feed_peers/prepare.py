"""Writes a Parquet folder's rows in a loader's own best format; done at once where they stand.

python -m benchmarks.feed_peers.prepare LOADER --data DIR --formats DIR [--rows N]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.feed_peers.loaders import LOADERS, Loader
from benchmarks.feed_peers.rows import Rows

DONE = "_done"  # readers of a folder of Parquet files pass over names like this


def prepare(loader: Loader, rows: Rows, formats: Path) -> Path:
    """The folder with the rows in the loader's format. It has its name and the file DONE only once it is complete."""
    folder = loader.folder(formats, rows)
    if folder == rows.data:
        return folder
    done = folder / DONE
    if done.is_file() and done.read_text() == rows.digest():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    loader.code.convert(rows, partial)
    (partial / DONE).write_text(rows.digest())
    partial.rename(folder)
    return folder


def parser(doc: str) -> argparse.ArgumentParser:
    """With the arguments that all programs here take."""
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("loader", choices=sorted(LOADERS))
    arguments.add_argument("--data", type=Path, required=True, help="folder of Parquet files")
    arguments.add_argument("--formats", type=Path, required=True, help="folder for the rows in other formats")
    arguments.add_argument("--rows", type=int, help="the first N rows only")
    return arguments


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    rows = Rows(arguments.data.resolve(), arguments.rows)
    print(prepare(LOADERS[arguments.loader], rows, arguments.formats.resolve()))


if __name__ == "__main__":
    main()
