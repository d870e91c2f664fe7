"""The gRPC door of the audit."""

from __future__ import annotations

from typing import Any, cast

import grpc

from hilora.errors import InvalidInput
from hilora_rpc.v1 import audit_pb2, audit_pb2_grpc
from services.common.auth import Scope
from services.registry.confusability_audit import AdapterAudit, Advice, ConfusabilityAudit, Rival
from services.registry.entrypoints.rpc_access import RpcAccess

AUDIT_SERVICE_NAME = audit_pb2.DESCRIPTOR.services_by_name["AuditService"].full_name

_DEFAULT_PAGE = 100
_MAX_PAGE = 500
_ADVICE = {
    Advice.FINE: audit_pb2.AUDIT_ADVICE_FINE,
    Advice.ADD_SAMPLES: audit_pb2.AUDIT_ADVICE_ADD_SAMPLES,
    Advice.REDESCRIBE: audit_pb2.AUDIT_ADVICE_REDESCRIBE,
    Advice.MERGE: audit_pb2.AUDIT_ADVICE_MERGE,
}

_Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """See `AuditService` in audit.proto.

    Args:
        audit: does the work.
        access: who may call what.
    """

    def __init__(self, *, audit: ConfusabilityAudit, access: RpcAccess) -> None:
        self._audit = audit
        self._access = access

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server."""
        audit_pb2_grpc.add_AuditServiceServicer_to_server(cast("Any", self), server)

    async def GetConfusability(
        self, request: audit_pb2.GetConfusabilityRequest, context: _Context
    ) -> audit_pb2.Confusability:
        """See audit.proto."""
        self._access.require(context, Scope.READ)
        return _message(await self._audit.adapter(request.adapter_name))

    async def AuditAdapters(
        self, request: audit_pb2.AuditAdaptersRequest, context: _Context
    ) -> audit_pb2.AuditAdaptersResponse:
        """See audit.proto."""
        self._access.require(context, Scope.READ)
        if request.limit > _MAX_PAGE:
            raise InvalidInput(
                f"A page of {request.limit} adapters was asked for.",
                code="invalid_request",
                remedy=f"Ask for at most {_MAX_PAGE}, and go on with offset.",
                place="limit",
            )
        page = await self._audit.page(offset=request.offset, limit=request.limit or _DEFAULT_PAGE)
        return audit_pb2.AuditAdaptersResponse(
            catalog_generation=page.catalog_generation,
            num_audited=page.num_audited,
            num_passed_over=page.num_passed_over,
            adapters=[_message(audit) for audit in page.adapters],
        )


def _message(audit: AdapterAudit) -> audit_pb2.Confusability:
    return audit_pb2.Confusability(
        adapter_name=audit.adapter_name,
        adapter_id=audit.adapter_id,
        num_samples=audit.num_samples,
        routed_right_at_least=audit.routed_right_at_least,
        rivals=[_rival(rival) for rival in audit.rivals],
        advice=_ADVICE[audit.advice],
        explanation=audit.explanation,
    )


def _rival(rival: Rival) -> audit_pb2.Rival:
    overlap = None
    if rival.overlap is not None:
        overlap = audit_pb2.UpdateOverlap(
            cosine=rival.overlap.cosine,
            norm_ratio=rival.overlap.norm_ratio,
            modules={
                path: audit_pb2.ModuleOverlap(
                    cosine=module.cosine,
                    input_alignment=module.input_alignment,
                    output_alignment=module.output_alignment,
                )
                for path, module in rival.overlap.modules.items()
            },
        )
    return audit_pb2.Rival(
        adapter_name=rival.adapter_name,
        adapter_id=rival.adapter_id,
        distance=rival.distance,
        error_bound=rival.error_bound,
        same_task_ratio=rival.same_task_ratio,
        is_near_duplicate=rival.is_near_duplicate,
        overlap=overlap,
    )
