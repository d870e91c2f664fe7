"""What an engine refuses at its door, before a request costs anything."""

from __future__ import annotations

from hilora.errors import InvalidInput, InvalidSamplingParams
from services.worker.engine.config import EngineConfig
from services.worker.engine.scheduling.request import MAX_PRIORITY, EngineRequest


def check_request(
    request: EngineRequest,
    *,
    config: EngineConfig,
    vocab_size: int,
    has_encoder: bool = False,
    can_explain: bool = True,
) -> None:
    """Refuse what this engine cannot run.

    Raises:
        InvalidInput: `empty_prompt`, `prompt_too_long`, `invalid_token_id`, `invalid_priority`, `lora_disabled`,
            `unprepared_plan`, `invalid_turn`, `explanation_unsupported`, `explanation_too_long`.
        InvalidSamplingParams: a stop token or a biased token that the model does not have; log-probabilities of a
            prompt that an encoder reads.
    """
    num_tokens = len(request.prompt_token_ids)
    if num_tokens == 0:
        raise InvalidInput("The prompt has no tokens.", code="empty_prompt", remedy="Send some text.", place="prompt")
    if num_tokens >= config.max_model_len:
        raise InvalidInput(
            f"The prompt has {num_tokens} tokens; with at least one token of answer, at most "
            f"{config.max_model_len - 1} fit this model's context.",
            code="prompt_too_long",
            remedy="Shorten the prompt.",
            place="prompt",
        )
    if not 0 <= min(request.prompt_token_ids) <= max(request.prompt_token_ids) < vocab_size:
        raise InvalidInput(
            f"A token id is outside 0..{vocab_size - 1}.",
            code="invalid_token_id",
            remedy="Use the ids of the base model's own tokenizer.",
            place="prompt",
        )
    request.sampling.check_token_ids(vocab_size)
    if has_encoder and request.sampling.prompt_logprobs is not None:
        raise InvalidSamplingParams(
            "An encoder reads this model's prompts; it predicts no tokens.",
            remedy="Leave prompt_logprobs out.",
            place="prompt_logprobs",
        )
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidInput(
            f"The priority is {request.priority}; it must be within -{MAX_PRIORITY}..{MAX_PRIORITY}.",
            code="invalid_priority",
            remedy="0 is the ordinary priority, lower is more urgent.",
            place="priority",
        )
    if not config.enable_lora and not request.plan.is_base_only:
        raise InvalidInput(
            "This engine serves its base model alone.",
            code="lora_disabled",
            remedy="Send the request without adapters, or to a worker that serves them.",
            place="model",
        )
    if request.plan.preparation is not None and not request.plan.is_base_only:
        # It would mix the adapters as they are, and nobody would notice.
        raise InvalidInput(
            f"The plan's adapters are to be prepared ({request.plan.preparation.method}) before the engine sees it.",
            code="unprepared_plan",
            remedy="Have a PlanPreparer prepare it first.",
            place="plan.preparation",
        )
    if request.num_read_tokens is not None and not 0 <= request.num_read_tokens < num_tokens:
        raise InvalidInput(
            f"{request.num_read_tokens} of {num_tokens} prompt tokens are to be read before the answer is written.",
            code="invalid_turn",
            remedy="Leave num_read_tokens out, or have at least the prompt's last token written.",
            place="num_read_tokens",
        )
    if has_encoder and request.num_read_tokens is not None:
        raise InvalidInput(
            "This model's encoder reads all of a prompt, and its decoder writes.",
            code="invalid_turn",
            remedy="Leave num_read_tokens out.",
            place="num_read_tokens",
        )
    if request.explains_gating and not request.plan.is_base_only:
        _check_explanation(request, config, can_explain=can_explain)


def _check_explanation(request: EngineRequest, config: EngineConfig, *, can_explain: bool) -> None:
    if not can_explain:
        raise InvalidInput(
            "This worker cannot tell which components act: its model has an encoder, or several processes share it.",
            code="explanation_unsupported",
            remedy="Ask for the plan alone, without its tokens.",
            place="explain",
        )
    num_tokens = min(len(request.prompt_token_ids) + request.sampling.max_tokens, config.max_model_len)
    if num_tokens > config.max_explained_tokens:
        raise InvalidInput(
            f"Prompt and answer may come to {num_tokens} tokens; which components act is told of at most "
            f"{config.max_explained_tokens}.",
            code="explanation_too_long",
            remedy="Lower max_tokens, shorten the prompt, or ask for the plan alone.",
            place="explain",
        )
