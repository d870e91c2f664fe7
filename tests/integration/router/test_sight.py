"""What a running router shows of its work, and what it never shows."""

from __future__ import annotations

import json
import logging

import httpx

from hilora_cli.route_log import read_records, summarise
from services.common.log import configure_logging
from tests.fakes.router_stack import eventually, running_router

_SECRET = "xyzzy-the-secret-word"


async def _lines(file, number):
    await eventually(lambda: file.exists() and len(file.read_text().splitlines()) >= number)
    return [json.loads(line) for line in file.read_text().splitlines()]


class TestRouteLog:
    async def test_each_generation_is_a_line_without_its_words(self, tmp_path):
        file = tmp_path / "log" / "routes.jsonl"
        async with running_router(route_log_file=file) as stack, httpx.AsyncClient(base_url=stack.url) as plain:
            prompt = f"country capital city {_SECRET}"
            await plain.post("/v1/completions", json={"model": "auto", "prompt": prompt})
            await plain.post("/v1/completions", json={"model": "poems", "prompt": prompt, "stream": True})
            await plain.post("/v1/completions", json={"model": "nobody", "prompt": prompt})
            automatic, named, unknown = await _lines(file, 3)
        assert _SECRET not in file.read_text()
        assert automatic["outcome"] == "ok"
        assert automatic["plan"][0]["adapter"] == "capitals"
        assert 0 < automatic["candidates"][0]["posterior"] <= 1
        assert automatic["num_completion_tokens"] == 4
        assert automatic["num_prompt_tokens"] == 4
        assert 0 < automatic["ttft_seconds"] <= automatic["seconds"]
        assert (named["mode"], named["outcome"]) == ("explicit", "ok")
        assert named["text_sha256"] == automatic["text_sha256"]
        assert (unknown["outcome"], unknown["error_code"]) == ("refused", "model_not_found")
        assert file.stat().st_mode & 0o077 == 0

    async def test_words_are_kept_only_if_the_operator_says_so(self, tmp_path):
        file = tmp_path / "routes.jsonl"
        async with (
            running_router(route_log_file=file, log_prompts=True) as stack,
            httpx.AsyncClient(base_url=stack.url) as plain,
        ):
            await plain.post("/v1/completions", json={"model": "auto", "prompt": _SECRET})
            assert (await _lines(file, 1))[0]["text"] == _SECRET

    async def test_the_command_reads_what_the_router_wrote(self, tmp_path):
        file = tmp_path / "routes.jsonl"
        async with running_router(route_log_file=file) as stack, httpx.AsyncClient(base_url=stack.url) as plain:
            for prompt in ("country capital city", "add numbers plus", "total plus add"):
                await plain.post("/v1/completions", json={"model": "auto", "prompt": prompt})
            await _lines(file, 3)
        summary = summarise(read_records([file]))
        assert (summary.num_generations, summary.num_automatic) == (3, 3)
        assert summary.shares["sums"] >= 2 / 3
        assert summary.outcomes == {"ok": 3}


class TestPrivacy:
    async def test_no_word_of_a_prompt_is_ever_logged(self, capfd):
        before = logging.getLogger().handlers[:], logging.getLogger().level
        configure_logging(service="router", level="DEBUG")
        try:
            async with running_router() as stack, httpx.AsyncClient(base_url=stack.url) as plain:
                for body in (
                    {"model": "auto", "prompt": _SECRET},
                    {"model": "auto", "prompt": _SECRET, "stream": True},
                    {"model": "auto", "prompt": _SECRET, "temperature": "hot"},
                    {"model": "nobody", "prompt": _SECRET},
                ):
                    await plain.post("/v1/completions", json=body)
                await plain.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": _SECRET}]})
                await plain.post("/v1/route", json={"text": _SECRET})
                await plain.post("/v1/embeddings", json={"model": "encoder", "input": _SECRET})
                stack.worker.service.fails_with = RuntimeError("broken")
                await plain.post("/v1/completions", json={"model": "auto", "prompt": _SECRET})
        finally:
            logging.getLogger().handlers[:], logging.getLogger().level = before
        logged = capfd.readouterr().err
        assert "request_ended" in logged
        assert _SECRET not in logged


class TestFigures:
    async def test_generations_decisions_and_the_encoder_are_counted(self):
        async with running_router() as stack, httpx.AsyncClient(base_url=stack.url) as plain:
            for _ in range(3):
                await plain.post("/v1/completions", json={"model": "auto", "prompt": "country capital"})
            await plain.post("/v1/completions", json={"model": "poems", "prompt": "x"})
            text = (await plain.get("/metrics")).text
        assert 'hilora_router_generations_total{outcome="ok"} 4.0' in text
        assert 'hilora_router_tokens_total{kind="completion"} 16.0' in text
        assert "hilora_router_inter_token_seconds_count 4.0" in text
        assert "hilora_router_encoder_cache_hits_total 2.0" in text
        assert "hilora_router_encoder_texts_total 1.0" in text
        assert 'hilora_router_decisions_total{mode="calibrated"} 3.0' in text
        assert 'hilora_router_decisions_total{mode="explicit"} 1.0' in text
        assert "hilora_router_plans_repeated_total 2.0" in text
        assert "hilora_router_top_posterior_count 3.0" in text
        assert 'adapter="' not in text
