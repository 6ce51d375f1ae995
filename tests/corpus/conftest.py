"""A real S3-compatible server on loopback, with credentials given as users give them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loom import native
from loom.corpus import remote

BUCKETS = ("corpora", "ai2-llm")  # the second is the one that published configurations name


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of fresh buckets; Loom finds the server and the credentials as users give them."""
    import boto3

    credentials = tmp_path / "credentials"
    credentials.write_text("[lab]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv(remote.ENDPOINT, s3_server)
    kernels = native.folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.folder().parent.mkdir(parents=True)
    kernels.mkdir(parents=True, exist_ok=True)
    native.folder().symlink_to(kernels)  # compiled once, not once a test
    client = boto3.client("s3", endpoint_url=s3_server)
    for bucket in BUCKETS:
        client.create_bucket(Bucket=bucket)
    yield client
    for bucket in BUCKETS:
        for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            client.delete_object(Bucket=bucket, Key=item["Key"])
        client.delete_bucket(Bucket=bucket)
        remote.filesystem(f"s3://{bucket}").invalidate_cache()
