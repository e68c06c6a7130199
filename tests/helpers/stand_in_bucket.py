"""A stand-in bucket for Apache Beam: bucket://a/b is the file a/b in the folder $BUCKET.

To make Beam accept such names, import this module.
"""

import os
import pathlib

from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

PREFIX = "bucket://"


class Bucket(LocalFileSystem):
    """Files in $BUCKET, without folders, as in a cloud: a file can be written before its folder exists."""

    @classmethod
    def scheme(cls):
        return PREFIX.removesuffix("://")

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        root = pathlib.Path(os.environ["BUCKET"])
        for path in root.rglob("*"):
            name = f"{PREFIX}{path.relative_to(root)}"
            if path.is_file() and name.startswith(dir_or_prefix):
                yield FileMetadata(name, path.stat().st_size)

    def open(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        return super().open(_local(path), mime_type, compression_type)

    def create(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        pathlib.Path(_local(path)).parent.mkdir(parents=True, exist_ok=True)
        return super().create(_local(path), mime_type, compression_type)


def _local(path: str) -> str:
    return f"{os.environ['BUCKET']}/{path.removeprefix(PREFIX)}"
