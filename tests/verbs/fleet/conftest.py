"""The buckets and containers of ``tests/storage/remote``."""

from tests.storage.remote.conftest import anywhere, azure, bucket, container, s3

__all__ = ["anywhere", "azure", "bucket", "container", "s3"]
