"""Who gets how much of the KV cache, and when."""

from __future__ import annotations

import logging

from services.worker.engine.kv.kv_cache import SequenceMemory
from services.worker.engine.kv.prefix_cache import prefix_key_of
from services.worker.engine.scheduling.request import ActiveRequest, RequestState

_log = logging.getLogger(__name__)


class KvPlaces:
    """Gives requests their places in the KV cache.

    Admission is hopeful: a request gets room for the tokens that it has, and more as they come. One that was taken back
    as often as may be gets room for all that it may come to instead, so that it needs nobody's any more.

    Args:
        kv_cache: the memory.
        base_revision: of the model; equal for equal weights.
        max_model_len: tokens of the longest sequence.
    """

    def __init__(self, kv_cache: SequenceMemory, *, base_revision: str, max_model_len: int) -> None:
        self._kv_cache = kv_cache
        self._base_revision = base_revision
        self._max_model_len = max_model_len

    def admit(self, active: ActiveRequest) -> bool:
        """Give a waiting request its place; False if there is none now."""
        num_tokens = active.num_tokens
        if active.is_shielded:
            num_tokens = min(active.num_prompt_tokens + active.request.sampling.max_tokens, self._max_model_len)
        if not self._kv_cache.can_admit(num_tokens):
            return False
        # What the model thinks of a prompt can only be told of tokens that are computed.
        is_sharing = not active.wants_prompt_logits
        prefix_key = prefix_key_of(self._base_revision, active.request.plan.reading) if is_sharing else None
        # One more than may be known, because the last token of these is always computed.
        known = active.tokens_between(0, min(active.num_shared_tokens + 1, active.num_tokens))
        active.kv_handle = self._kv_cache.allocate(active.request_id, known, prefix_key=prefix_key)
        active.num_computed_tokens = active.kv_handle.num_cached_tokens
        if num_tokens > len(known):
            assert self._kv_cache.reserve(active.kv_handle, num_tokens), "admission promised more than there is"
        return True

    def extend(self, active: ActiveRequest) -> bool:
        """Room for the request's last known token, which is computed next; False if memory is out."""
        assert active.kv_handle is not None, f"{active.request_id} has no place"
        return self._kv_cache.reserve(active.kv_handle, active.num_tokens)

    def take_back(self, active: ActiveRequest) -> None:
        """Preempt a request: all it has written may go."""
        # A request that has said something since it was admitted had finite values; of half a prompt nobody knows.
        try:
            self.free(active, is_reusable=active.state is RequestState.DECODE)
        except Exception:  # its memory is not its own any more even if it could not be cleared yet
            _log.exception("clearing what request %s gave back failed", active.request_id)
        active.num_computed_tokens = 0

    def free(self, active: ActiveRequest, *, is_reusable: bool) -> None:
        """Give a request's place back, if it has one.

        Args:
            active: the request.
            is_reusable: whether what it wrote is known to be right.
        """
        if active.kv_handle is None:
            return
        handle, active.kv_handle = active.kv_handle, None
        self._kv_cache.free(
            handle,
            token_ids=active.tokens_between(0, active.num_computed_tokens),
            num_written=min(active.num_computed_tokens, active.num_shared_tokens),
            is_reusable=is_reusable,
        )
