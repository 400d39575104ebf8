"""The environment of the tests.

It is imported before Ray is, since Ray's workers keep the environment in which Ray started.
"""

from __future__ import annotations

import os
import socket
import tempfile

with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    S3_PORT = _free.getsockname()[1]
"""Where the object store listens; it starts with the test that needs it."""

os.environ.update(
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_BACKEND_LOG_LEVEL="fatal",
    HF_HUB_OFFLINE="1",
    RAFFECT_CACHE=os.path.join(tempfile.gettempdir(), f"raffect-tests-{os.getuid()}"),
    AWS_ACCESS_KEY_ID="x",
    AWS_SECRET_ACCESS_KEY="y",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_ENDPOINT_URL=f"http://127.0.0.1:{S3_PORT}",
)
os.environ.pop("RAY_ADDRESS", None)
