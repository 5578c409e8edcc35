"""Fixtures for all tests. Each is brought in here and nowhere else: imported twice, a session's fixture runs twice."""

from tests.object_store import object_store, s3_environment

__all__ = ["object_store", "s3_environment"]
