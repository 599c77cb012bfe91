"""An S3-compatible server on this machine for a test session, with two buckets of two objects."""

from collections.abc import Iterator

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "mill", "AWS_SECRET_ACCESS_KEY": "canary-of-a-store"}


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """Return the address of a server whose buckets have two objects below `set/`.

    `grain` wants keys; anybody may read and write `market`.
    """
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    for bucket, bucket_acl, acl in (
        ("grain", "private", "private"),
        ("market", "public-read-write", "public-read"),
    ):
        client.create_bucket(Bucket=bucket, ACL=bucket_acl)
        client.put_object(Bucket=bucket, Key="set/a", Body=b"wheat\n" * 1000, ACL=acl)
        client.put_object(Bucket=bucket, Key="set/deep/b", Body=b"rye\n", ACL=acl)
    yield url
    server.stop()
