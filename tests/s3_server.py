"""A server on this machine that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer

from headway.engine.checkpoint.storage import Folder
from ports import free_port


@contextmanager
def bucket(path: str) -> Iterator[str]:
    """The address of a folder, `bucket/name`, in an empty bucket, with the credentials for it in place."""
    port = free_port()
    server = ThreadedMotoServer(port=port, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "headway")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "headway")
        options = (
            f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1&allow_bucket_creation=true"
        )
        Folder(f"s3://{path.partition('/')[0]}?{options}").create()
        yield f"s3://{path}?{options}"
    server.stop()
