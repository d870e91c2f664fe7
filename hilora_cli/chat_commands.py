"""The commands of `hilora chat`: lines that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilora.errors import InvalidInput
from hilora_cli.conversation import Conversation, Explain
from hilora_cli.server_call import with_client

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a command asks the chat to do next."""

    ask: str | None = None
    """A question to be answered."""
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class _Command:
    run: Callable[[str], Outcome]
    usage: str
    summary: str


class ChatCommands:
    """The commands over one conversation.

    Args:
        conversation: they change it.
        console: where they show something.
        url: of the server.
        api_key: its key, if it wants one.
    """

    def __init__(self, conversation: Conversation, console: Console, *, url: str, api_key: str | None) -> None:
        self._conversation = conversation
        self._console = console
        self._url = url
        self._api_key = api_key
        self._commands = {
            "/help": _Command(self._help, "/help", "this list"),
            "/model": _Command(self._model, "/model [NAME]", "auto, the base, an adapter, or name@version"),
            "/explain": _Command(self._explain, "/explain off|on|tokens", "how much answers say of their adapters"),
            "/route": _Command(self._route, "/route [TEXT]", "which adapters a text gets, without answering it"),
            "/adapters": _Command(self._adapters, "/adapters", "what /model may be"),
            "/system": _Command(self._system, "/system [TEXT]", "instructions for the whole conversation"),
            "/retry": _Command(self._retry, "/retry", "ask the last question again"),
            "/reset": _Command(self._reset, "/reset", "begin another conversation"),
            "/save": _Command(self._save, "/save FILE", "the conversation as JSON, with the adapters of each answer"),
            "/quit": _Command(self._quit, "/quit", "leave; so does Ctrl-D"),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, with their slash."""
        return tuple(self._commands)

    def knows(self, line: str) -> bool:
        """Whether a line begins with one of them."""
        return line.partition(" ")[0] in self._commands

    def run(self, line: str) -> Outcome:
        """Do what a line says.

        Raises:
            InvalidInput: `unknown_command`, or an argument that the command cannot use.
            HiloraError: what the server said.
        """
        name, _, argument = line.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise InvalidInput(f"There is no command {name}.", code="unknown_command", remedy="/help lists them.")
        return command.run(argument.strip())

    def _help(self, _: str) -> Outcome:
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(style="dim")
        for command in self._commands.values():
            table.add_row(command.usage.replace("[", r"\["), command.summary)
        self._console.print(table)
        self._say('A line that ends in \\ goes on in the next one; """ begins and ends many. Ctrl-C stops an answer.')
        return Outcome()

    def _model(self, argument: str) -> Outcome:
        if argument:
            # The server knows what a name may be, and says what is wrong with it.
            probe = {"model": argument, "text": "hello"}
            with_client(self._url, self._api_key, lambda client: client.post("/v1/route", probe))
            self._conversation.model = argument
        self._say(f"model {self._conversation.model}")
        return Outcome()

    def _explain(self, argument: str) -> Outcome:
        if argument:
            try:
                self._conversation.explain = Explain(argument)
            except ValueError as error:
                raise InvalidInput(
                    f"{argument!r} is not a way to explain.", code="invalid_argument", remedy="Use off, on or tokens."
                ) from error
        self._say(f"explain {self._conversation.explain}")
        return Outcome()

    def _route(self, argument: str) -> Outcome:
        from hilora_cli.route import candidate_table, verdict

        text = argument or self._conversation.last_question
        if text is None:
            raise InvalidInput("Nothing was asked yet.", code="nothing_asked", remedy="Write /route and a text.")
        turns = self._conversation.turns
        if not argument and turns and turns[-1].question == text:
            # The last question is what it is about, not its answer.
            said = self._conversation.messages()[:-1]
        else:
            said = self._conversation.messages(text)
        body: dict[str, Any] = {
            "messages": said,
            "model": self._conversation.model,
            "hilora": {"exclude_adapters": list(self._conversation.exclude)},
        }
        headers = self._conversation.headers
        found = with_client(self._url, self._api_key, lambda client: client.post("/v1/route", body, headers=headers))
        self._console.print(candidate_table(found))
        self._console.print(verdict(found))
        return Outcome()

    def _adapters(self, _: str) -> Outcome:
        from rich.columns import Columns
        from rich.text import Text

        listed = with_client(self._url, self._api_key, lambda client: client.get("/v1/models"))
        used = {adapter["name"] for turn in self._conversation.turns[-1:] for adapter in turn.answer.hilora["adapters"]}
        names: list[Text] = []
        for model in listed["data"]:
            name = model["id"]
            line = Text(name, style="bold" if name in used else "" if model["parent"] else "dim")
            if name == self._conversation.model:
                line.append(" ← model", style="cyan")
            if name in used:
                line.append(" ← last answer", style="green")
            names.append(line)
        self._console.print(Columns(names, padding=(0, 2)))
        return Outcome()

    def _system(self, argument: str) -> Outcome:
        self._conversation.system = argument
        self._say("instructions set" if argument else "no instructions")
        return Outcome()

    def _retry(self, _: str) -> Outcome:
        question = self._conversation.take_back()
        if question is None:
            raise InvalidInput("Nothing was asked yet.", code="nothing_asked", remedy="Write a question.")
        return Outcome(ask=question)

    def _reset(self, _: str) -> Outcome:
        self._conversation.reset()
        self._say("another conversation")
        return Outcome()

    def _save(self, argument: str) -> Outcome:
        if not argument:
            raise InvalidInput("Where to?", code="invalid_argument", remedy="Write /save and a file's name.")
        path = Path(argument).expanduser()
        try:
            # Never over a file that is there.
            with path.open("x", encoding="utf-8") as file:
                json.dump(self._conversation.record(), file, indent=2, ensure_ascii=False)
                file.write("\n")
        except OSError as error:
            raise InvalidInput(
                f"{path} cannot be written: {error.strerror}.", code="cannot_save", remedy="Choose another file."
            ) from error
        self._say(f"saved to {path}")
        return Outcome()

    def _quit(self, _: str) -> Outcome:
        return Outcome(is_over=True)

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False, markup=False)
