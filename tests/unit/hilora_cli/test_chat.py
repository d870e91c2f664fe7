from __future__ import annotations

import asyncio
import io
import json

import httpx
import pytest
from rich.console import Console

from hilora.errors import InvalidInput, Unavailable
from hilora_cli.api_client import ApiClient
from hilora_cli.chat_commands import ChatCommands
from hilora_cli.chat_input import read_message
from hilora_cli.chat_screen import show_adapters
from hilora_cli.conversation import Answer, Conversation, Explain, Turn
from hilora_cli.gating_strip import gating_strips, place_of

HILORA = {
    "adapters": [{"name": "near", "adapter_id": "near@1", "num_rocs": 3, "lora_rank": 8, "weight": 0.75}],
    "candidates": [{"name": "near", "posterior": 0.912}],
    "mode": "calibrated",
    "is_out_of_distribution": False,
}


def _screen(width: int = 100) -> Console:
    return Console(width=width, file=io.StringIO())


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class _Server:
    """Answers each question with the next of some event lists, and keeps what it was asked."""

    def __init__(self, *answers: list[dict]) -> None:
        self._answers = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        lines = [f"data: {json.dumps(event)}\n\n" for event in next(self._answers)]
        return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))

    @property
    def bodies(self) -> list[dict]:
        return [json.loads(request.content) for request in self.requests]

    def ask(self, conversation: Conversation, question: str) -> Answer:
        answer, told = Answer(), []

        async def run() -> None:
            async with ApiClient("http://server", transport=httpx.MockTransport(self)) as client:
                await conversation.ask(client, question, answer, told.append)

        try:
            asyncio.run(run())
        finally:
            assert "".join(told) == answer.text
        return answer


def _chunk(content: str | None = None, reason: str | None = None, **fields) -> dict:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **fields}


def _answered(*pieces: str) -> list[dict]:
    usage = {"choices": [], "usage": {"completion_tokens": len(pieces)}, "hilora": HILORA}
    return [_chunk("", hilora=HILORA), *map(_chunk, pieces), _chunk(reason="stop"), usage]


_BROKEN = {"error": {"message": "The worker is gone.", "code": "worker_gone"}}


class TestConversation:
    def test_each_question_brings_what_was_said_and_one_session(self) -> None:
        server = _Server(_answered("one", " two"), _answered("three"))
        conversation = Conversation(system="be short", explain=Explain.TOKENS, exclude=("far",))
        first = server.ask(conversation, "a?")
        server.ask(conversation, "b?")
        assert (first.text, first.finish_reason, first.num_tokens, first.hilora) == ("one two", "stop", 2, HILORA)
        assert server.bodies[1]["messages"] == [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "a?"},
            {"role": "assistant", "content": "one two"},
            {"role": "user", "content": "b?"},
        ]
        assert server.bodies[0]["hilora"] == {"explain": "tokens", "exclude_adapters": ["far"]}
        assert {request.headers["x-session-id"] for request in server.requests} == {conversation.session_id}

    def test_a_reset_begins_another_session_and_keeps_the_settings(self) -> None:
        conversation = Conversation(model="near", turns=[Turn(question="a", answer=Answer(text="b"))])
        before = conversation.session_id
        conversation.reset()
        assert conversation.messages("c") == [{"role": "user", "content": "c"}]
        assert conversation.session_id != before
        assert conversation.model == "near"

    def test_what_was_said_before_the_end_is_kept(self) -> None:
        conversation = Conversation()
        with pytest.raises(Exception, match="gone"):
            _Server([_chunk("half"), _BROKEN]).ask(conversation, "a?")
        assert [(turn.question, turn.answer.text) for turn in conversation.turns] == [("a?", "half")]
        assert conversation.turns[0].answer.finish_reason is None

    def test_a_question_that_got_no_answer_leaves_the_conversation_and_can_be_asked_again(self) -> None:
        conversation = Conversation()
        with pytest.raises(Exception, match="gone"):
            _Server([_BROKEN]).ask(conversation, "a?")
        assert conversation.turns == []
        assert conversation.take_back() == "a?"

    def test_a_retry_replaces_the_answer_only_if_there_is_another(self) -> None:
        server = _Server(_answered("one"), [_BROKEN], _answered("two"))
        conversation = Conversation()
        server.ask(conversation, "a?")
        for expected in ("one", "two"):
            question = conversation.take_back()
            assert question == "a?"
            if expected == "one":
                with pytest.raises(Exception, match="gone"):
                    server.ask(conversation, question)
            else:
                server.ask(conversation, question)
            assert [turn.answer.text for turn in conversation.turns] == [expected]
        assert [body["messages"] for body in server.bodies] == [[{"role": "user", "content": "a?"}]] * 3


class TestInput:
    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["  plain "], "plain"),
            (["one \\", "two\\", "three"], "one \ntwo\nthree"),
            (['"""one', "", '  two"""'], "one\n\n  two"),
            (['"""one line"""'], "one line"),
            (['"""never', "ended"], "never\nended"),
            (["goes on\\"], "goes on"),
        ],
    )
    def test_messages(self, lines, message) -> None:
        asked: list[bool] = []
        left = iter(lines)

        def read_line(*, is_continuing: bool) -> str:
            asked.append(is_continuing)
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        assert read_message(read_line) == message
        assert asked == [False, *[True] * (len(asked) - 1)]

    def test_the_end_is_no_message(self) -> None:
        def read_line(**_: bool) -> str:
            raise EOFError

        with pytest.raises(EOFError):
            read_message(read_line)


class TestScreen:
    def test_the_adapters_at_work_with_grant_weight_and_posterior(self) -> None:
        console = _screen()
        answer = Answer(text="x", hilora=HILORA, finish_reason="stop", num_tokens=1, seconds=0.25)
        show_adapters(console, answer, Explain.ON)
        line, footer = _text(console).splitlines()
        assert line.split() == ["near", "3/8", "ROCs", "█" * 12, "0.75", "posterior", "0.912"]
        assert footer == "calibrated · 1 token in 0.2 s"

    @pytest.mark.parametrize(
        ("changes", "hilora", "said"),
        [
            ({"finish_reason": "length"}, {}, "cut off"),
            ({"finish_reason": None}, {}, "interrupted"),
            ({"text": ""}, {}, "nothing to say"),
            ({}, {"is_out_of_distribution": True}, "out of distribution"),
            ({}, {"adapters": []}, "the base model alone"),
            ({}, {"session": {"is_sticky": True, "reason": "same topic"}}, "plan kept"),
            ({}, {"session": {"is_sticky": False, "reason": "the topic moved"}}, "the topic moved"),
        ],
    )
    def test_what_is_unusual_is_said(self, changes, hilora, said) -> None:
        fields = {"text": "x", "finish_reason": "stop", "hilora": HILORA | hilora} | changes
        console = _screen()
        show_adapters(console, Answer(**fields), Explain.ON)
        assert said in _text(console)
        plain = _screen()
        show_adapters(plain, Answer(text="x", finish_reason="stop", hilora=HILORA), Explain.ON)
        assert said not in _text(plain)

    def test_off_is_one_line_and_no_answer_is_none(self) -> None:
        console = _screen()
        show_adapters(console, Answer(text="x", hilora=HILORA, finish_reason="stop"), Explain.OFF)
        assert _text(console).count("\n") == 1
        assert "3 of 8 ROCs" in _text(console)
        silent = _screen()
        show_adapters(silent, Answer(), Explain.ON)
        assert _text(silent) == ""


def _gated(*modules: tuple[str, list[int]]) -> dict:
    gating = [
        {"module_path": path, "adapters": [{"adapter_id": "near@1", "num_tokens_fired": fired}]}
        for path, fired in modules
    ]
    return HILORA | {"gating": gating, "num_gated_tokens": 8}


def _strips(hilora: dict, width: int = 100) -> list[str]:
    console = _screen(width)
    console.print(gating_strips(hilora, width=width))
    return [line.rstrip() for line in _text(console).splitlines()]


class TestStrips:
    def test_a_layer_is_a_row_and_a_component_a_cell(self) -> None:
        shown = _strips(
            _gated(
                ("model.layers.0.self_attn.q_proj", [8, 4, 0]),
                ("model.layers.0.mlp.down_proj", [1, 7, 8]),
                ("model.layers.1.self_attn.q_proj", [0, 0, 8]),
            )
        )
        assert shown == ["near, 8 tokens", "  q   dow", "0 █▅· ▂██", "1 ··█"]

    def test_layers_stand_in_the_order_of_their_numbers(self) -> None:
        shown = _strips(_gated(*[(f"h.{layer}.attn.c_attn", [layer % 9]) for layer in (10, 9, 2)]))
        assert [line.split()[0] for line in shown[2:]] == ["2", "9", "10"]

    def test_many_components_share_cells_so_that_rows_fit(self) -> None:
        modules = [(f"model.layers.0.m{idx}_proj", [8] * 64 + [0] * 64) for idx in range(7)]
        shown = _strips(_gated(*modules), width=80)
        assert max(map(len, shown)) <= 80
        cells = shown[-1].split()[1]
        assert cells == "█" * (len(cells) // 2) + cells[len(cells) // 2 :]
        assert cells.endswith("·")

    def test_experts_of_a_layer_share_their_cells_and_what_is_in_no_layer_has_a_row(self) -> None:
        shown = _strips(
            _gated(
                ("model.layers.0.mlp.experts.0.up_proj", [8, 0]),
                ("model.layers.0.mlp.experts.1.up_proj", [0, 0]),
                ("lm_head", [8, 2]),
            )
        )
        assert shown[2:] == ["      0 ▅·", "lm_head █▃"]

    def test_an_answer_without_gating_has_none(self) -> None:
        assert gating_strips(HILORA, width=80) is None
        assert gating_strips(HILORA | {"gating": [], "num_gated_tokens": 9}, width=80) is None

    @pytest.mark.parametrize(
        ("path", "place"),
        [
            ("model.layers.12.mlp.down_proj", ("12", "down")),
            ("transformer.h.3.attn.c_attn", ("3", "c_attn")),
            ("model.layers.2.mlp.experts.5.gate_proj", ("2", "gate")),
            ("lm_head", ("lm_head", "")),
            ("model.embed_tokens", ("embed_tokens", "")),
        ],
    )
    def test_places(self, path, place) -> None:
        assert place_of(path) == place


class TestCommands:
    def _commands(self, **settings) -> tuple[ChatCommands, Conversation, Console]:
        conversation, console = Conversation(**settings), _screen()
        # Nobody listens there: commands that ask the server say so.
        return ChatCommands(conversation, console, url="http://127.0.0.1:1", api_key=None), conversation, console

    def test_help_names_every_command(self) -> None:
        commands, _, console = self._commands()
        commands.run("/help")
        assert all(name in _text(console) for name in commands.names)
        assert "/model [NAME]" in _text(console)

    def test_settings(self) -> None:
        commands, conversation, _ = self._commands()
        commands.run("/explain tokens")
        commands.run("/system  answer in rhymes ")
        assert (conversation.explain, conversation.system) == (Explain.TOKENS, "answer in rhymes")
        commands.run("/system")
        assert conversation.system == ""

    @pytest.mark.parametrize("line", ["/nope", "/explain all", "/save", "/retry", "/route"])
    def test_what_cannot_be_done_is_refused_with_a_remedy(self, line) -> None:
        with pytest.raises(InvalidInput) as caught:
            self._commands()[0].run(line)
        assert caught.value.remedy

    def test_a_model_is_the_servers_to_accept(self) -> None:
        commands, conversation, _ = self._commands()
        with pytest.raises(Unavailable):
            commands.run("/model nobody")
        assert conversation.model == "auto"

    def test_a_record_is_saved_once(self, tmp_path) -> None:
        turn = Turn(question="a", answer=Answer(text="b", hilora=HILORA, finish_reason="stop"))
        commands, _, _ = self._commands(turns=[turn])
        commands.run(f"/save {tmp_path / 'talk.json'}")
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert saved["turns"] == [{"question": "a", "answer": "b", "finish_reason": "stop", "hilora": HILORA}]
        with pytest.raises(InvalidInput) as caught:
            commands.run(f"/save {tmp_path / 'talk.json'}")
        assert caught.value.code == "cannot_save"

    def test_quitting_and_retrying_are_the_chats_to_do(self) -> None:
        commands, conversation, _ = self._commands()
        assert commands.run("/quit").is_over
        conversation.last_question = "again?"
        assert commands.run("/retry").ask == "again?"
        assert commands.knows("/quit now")
        assert not commands.knows("/etc is a folder")
