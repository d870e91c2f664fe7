"""`python -m services.common.probe TARGET`: asks one service how it is, for a container's health check.

A target is `http://host:port/path`, which has to answer 200, or `grpc://host:port[/service]`, whose health service has
to say SERVING. Exit status 0 means healthy, 1 that it is not, 2 that the target is none. Kubernetes asks by itself;
container engines have only this, and the images hold no curl.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 4.0


def probe(target: str, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> str | None:
    """Ask once.

    Args:
        target: see the module.
        timeout_seconds: when to give up.

    Returns:
        None if it is healthy, otherwise what is wrong.

    Raises:
        ValueError: the target is neither form.
    """
    parts = urlsplit(target)
    if parts.scheme == "http" and parts.netloc:
        return _ask_http(target, timeout_seconds)
    if parts.scheme == "grpc" and parts.port:
        return _ask_grpc(parts.netloc, parts.path.strip("/"), timeout_seconds)
    raise ValueError(f"{target!r} is neither http://host:port/path nor grpc://host:port[/service].")


def _ask_http(url: str, timeout_seconds: float) -> str | None:
    # A proxy of the environment must not answer for the service beside us.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_seconds) as response:
            return None if response.status == 200 else f"HTTP {response.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}: {error.read(2000).decode(errors='replace')}"
    except OSError as error:
        return f"no answer: {error}"


def _ask_grpc(address: str, service: str, timeout_seconds: float) -> str | None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its attributes are set at run time
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_seconds)
        except grpc.RpcError as error:
            return f"no answer: {error.code().name}"
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return None if name == "SERVING" else name


def main(arguments: list[str]) -> int:
    """See the module."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m services.common.probe TARGET\n")
        return 2
    try:
        trouble = probe(arguments[0])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if trouble is not None:
        sys.stderr.write(f"{trouble}\n")
    return 0 if trouble is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
