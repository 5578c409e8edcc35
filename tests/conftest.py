"""Fixtures for all tests. Each is brought in here and nowhere else: imported twice, a session's fixture runs twice."""

import os

from pipelines.launch import FOR_SMALL_DATA
from tests.object_store import object_store, s3_environment

__all__ = ["object_store", "s3_environment"]

# Small data never repays the JVM's second compiler: without it a job needs a good part less of the processor.
os.environ.setdefault("SPARK_SUBMIT_OPTS", FOR_SMALL_DATA)
