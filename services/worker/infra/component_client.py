"""Component files from the registry, checked against the catalogue, as tensors.

A components file is safetensors with two tensors a module, `<module_path>.roc_a [R, D]` and `<module_path>.roc_b
[R, O]`, float32, scaling folded into b; one file per basis.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import grpc
import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.errors import InvalidAdapter, RegistryUnavailable, UnknownAdapter
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc, routing_pb2
from services.common.rpc_client import translated_errors
from services.worker.infra.component_files import ComponentFiles

_MAX_FILE_BYTES = 4 << 30
"""Components of one adapter in one basis; a larger announcement is a mistake."""

_BASIS_MESSAGES = {
    RocBasis.SVD: routing_pb2.RocBasis.ROC_BASIS_SVD,
    RocBasis.TRAINED: routing_pb2.RocBasis.ROC_BASIS_TRAINED,
}
_SUFFIX_A = ".roc_a"
_SUFFIX_B = ".roc_b"


class ComponentClient:
    """Implements `ComponentSource` over the registry's gRPC service.

    Args:
        channel: to the registry, made on `loop`; the caller closes it.
        loop: the event loop that owns the channel. `fetch` is called from other threads.
        peer: the registry, for messages.
        checksum_of: sha256 of an adapter's file, as the catalogue has it; None for an unknown adapter.
        timeout_seconds: of one download.
        files: the disk tier, asked before the registry; None without one.
    """

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        loop: asyncio.AbstractEventLoop,
        peer: str,
        checksum_of: Callable[[str, RocBasis], str | None],
        timeout_seconds: float = 120.0,
        files: ComponentFiles | None = None,
    ) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)
        self._loop = loop
        self._peer = peer
        self._checksum_of = checksum_of
        self._timeout_seconds = timeout_seconds
        self._files = files

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ComponentSource`."""
        expected = self._checksum_of(adapter_id, basis)
        if expected is None:
            raise UnknownAdapter(
                f"{adapter_id} has no components in the {basis} basis in this worker's catalogue.",
                remedy="Route the request again.",
                place=adapter_id,
            )
        if self._files is not None and (kept := self._files.read(expected)) is not None:
            return parse_components(kept, basis=basis, adapter_id=adapter_id)
        content = asyncio.run_coroutine_threadsafe(self._download(adapter_id, basis), self._loop).result()
        if hashlib.sha256(content).hexdigest() != expected:
            raise InvalidAdapter(
                f"The components of {adapter_id} are not what the catalogue promises: their checksum differs.",
                code="component_checksum_mismatch",
                remedy="The artifact is damaged; register the adapter again.",
                place=adapter_id,
            )
        components = parse_components(content, basis=basis, adapter_id=adapter_id)
        if self._files is not None:
            self._files.write(expected, content)
        return components

    def forget(self, adapter_id: str) -> int:
        """Remove an adapter that left the catalogue from the disk tier; returns the bytes."""
        if self._files is None:
            return 0
        checksums = {self._checksum_of(adapter_id, basis) for basis in RocBasis}
        return sum(self._files.forget(checksum) for checksum in checksums if checksum is not None)

    async def _download(self, adapter_id: str, basis: RocBasis) -> bytes:
        request = registry_pb2.FetchComponentsRequest(adapter_id=adapter_id, basis=_BASIS_MESSAGES[basis])
        content = bytearray()
        total_bytes = 0
        with translated_errors(self._peer):
            async for chunk in self._stub.FetchComponents(request, timeout=self._timeout_seconds):
                total_bytes = total_bytes or chunk.total_bytes
                self._check_chunk(chunk, adapter_id, num_received=len(content), total_bytes=total_bytes)
                content += chunk.data
        if len(content) != total_bytes or not content:
            raise RegistryUnavailable(f"{self._peer} sent {len(content)} of {total_bytes} bytes of {adapter_id}.")
        return bytes(content)

    def _check_chunk(
        self, chunk: registry_pb2.ComponentChunk, adapter_id: str, *, num_received: int, total_bytes: int
    ) -> None:
        """A registry that is mistaken must not fill this worker's memory."""
        if total_bytes > _MAX_FILE_BYTES:
            raise RegistryUnavailable(
                f"{self._peer} announced {total_bytes} bytes of components of {adapter_id}; at most {_MAX_FILE_BYTES} "
                "are taken."
            )
        is_next = chunk.offset == num_received and chunk.total_bytes == total_bytes
        if not is_next or num_received + len(chunk.data) > total_bytes:
            raise RegistryUnavailable(f"{self._peer} sent the components of {adapter_id} out of order, or too many.")


def parse_components(content: bytes, *, basis: RocBasis, adapter_id: str) -> DecomposedAdapter:
    """Read a components file from memory.

    Raises:
        InvalidAdapter: `malformed_components`: not safetensors, or not the tensors promised, or none, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of the format that torch does not have
        raise _malformed(adapter_id, str(error)) from error
    modules: dict[str, RankOneComponents] = {}
    for name, a_RD in tensors.items():
        module_path = name.removesuffix(_SUFFIX_A)
        b_RO = tensors.get(f"{module_path}{_SUFFIX_B}")
        if name.endswith(_SUFFIX_B) and f"{name.removesuffix(_SUFFIX_B)}{_SUFFIX_A}" in tensors:
            continue
        if module_path == name or b_RO is None:
            raise _malformed(adapter_id, f"{name} has no counterpart")
        is_pair = a_RD.ndim == b_RO.ndim == 2 and a_RD.shape[0] == b_RO.shape[0]
        if not is_pair or a_RD.dtype != torch.float32 or b_RO.dtype != torch.float32:
            raise _malformed(adapter_id, f"{module_path} is not a pair of float32 matrices with equal row numbers")
        if not (a_RD.isfinite().all() and b_RO.isfinite().all()):
            raise _malformed(adapter_id, f"{module_path} has values that are not finite")
        modules[module_path] = RankOneComponents(a_RD=a_RD, b_RO=b_RO)
    if not any(rocs.a_RD.numel() + rocs.b_RO.numel() for rocs in modules.values()):
        raise _malformed(adapter_id, "it has no components")
    return DecomposedAdapter(basis=basis, modules=modules)


def _malformed(adapter_id: str, reason: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"The components file of {adapter_id} cannot be read: {reason}.",
        code="malformed_components",
        remedy="The artifact was written by another version, or is damaged; register the adapter again.",
        place=adapter_id,
    )
