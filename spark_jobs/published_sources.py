"""Raw files that are themselves of a published folder: its manifest says which of them are, not the listing.

The seed and what was served are read by a glob over their folders. A job that writes there puts files in place before
it publishes them and deletes older ones after, so between the two, or where it was killed, a day lies there twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import get_args

from schemas.errors import UserError
from schemas.manifest import MANIFEST, Kind
from schemas.storage import join
from spark_jobs.hadoop_files import FileStatus, HadoopFiles
from spark_jobs.publication import WRITER

Published = dict[str, frozenset[str] | None]
"""By root of a folder of Headrace's, the URLs that its manifest names; None for a folder of others."""


def list_published(hadoop: HadoopFiles, url: str, part: str) -> list[FileStatus]:
    """The files at a URL or glob; of those of a published folder, only the ones that its manifest names.

    Raises UserError where a folder is published anew meanwhile: its files would be some of one version and some of
    another.
    """
    files = hadoop.glob(url)
    before = _published(hadoop, files, part)
    if all(named is None for named in before.values()):
        return files
    files = hadoop.glob(url)  # the manifests first: what they name is still there, or they are others now
    for root, named in _published(hadoop, files, part).items():
        if root in before and before[root] != named:
            raise UserError(f"{root} was published anew while its files were listed: run again.")
        before[root] = named
    return only_named(files, part, before)


def only_named(files: Iterable[FileStatus], part: str, published: Published) -> list[FileStatus]:
    return [file for file in files if (named := published.get(_root_of(file.url, part))) is None or file.url in named]


def _published(hadoop: HadoopFiles, files: Sequence[FileStatus], part: str) -> Published:
    return {root: _named_in(hadoop, root) for root in {_root_of(file.url, part) for file in files} if root}


def _root_of(url: str, part: str) -> str:
    """The folder that would hold the manifest, were the file of a published one; empty where it lies otherwise."""
    return url.rpartition(f"/{part}/")[0]


def _named_in(hadoop: HadoopFiles, root: str) -> frozenset[str] | None:
    if not hadoop.exists(join(root, MANIFEST)):
        # A first version that was never published.
        return frozenset() if hadoop.exists(join(root, WRITER)) else None
    try:
        manifest = json.loads(hadoop.read_text(join(root, MANIFEST)))
    except json.JSONDecodeError:
        return None
    if not isinstance(manifest, dict) or manifest.get("kind") not in get_args(Kind) or "parts" not in manifest:
        return None
    return frozenset(join(root, file["path"]) for files in manifest["parts"].values() for file in files)
