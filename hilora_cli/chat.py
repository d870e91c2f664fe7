"""`hilora chat`: a conversation in a terminal, with the adapters at work under each answer.

Piped, it answers one question a line: answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from hilora_cli.conversation import Explain
from hilora_cli.server_options import DEFAULT_URL, ApiKeyOption, ExcludeOption, UrlOption

if TYPE_CHECKING:
    from rich.console import Console

    from hilora_cli.chat_commands import ChatCommands
    from hilora_cli.chat_input import ReadLine
    from hilora_cli.conversation import Conversation


def chat(
    once: Annotated[str | None, typer.Option("--once", help="Answer this one question and end.")] = None,
    model: Annotated[str, typer.Option("--model", help="`auto`, the base's name or an adapter's.")] = "auto",
    system: Annotated[str, typer.Option("--system", help="Instructions for the whole conversation.")] = "",
    explain: Annotated[Explain, typer.Option("--explain", help="How much answers say of their adapters.")] = Explain.ON,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=2.0, help="0 is greedy.")] = 0.0,
    exclude: ExcludeOption = None,
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
) -> None:
    """Talk to the server. /help lists what else can be done."""
    import sys

    from rich.console import Console

    from hilora_cli.chat_commands import ChatCommands
    from hilora_cli.chat_input import Terminal
    from hilora_cli.conversation import Conversation

    conversation = Conversation(
        model=model,
        system=system,
        explain=explain,
        max_tokens=max_tokens,
        temperature=temperature,
        exclude=tuple(exclude or ()),
    )
    is_interactive = once is None and sys.stdin.isatty() and sys.stdout.isatty()
    # For a program, the answer alone goes to standard output.
    console = Console(stderr=not is_interactive)
    commands = ChatCommands(conversation, console, url=url, api_key=api_key)
    talk = _Chat(conversation, commands, console, url=url, api_key=api_key)
    if is_interactive:
        talk.greet()
        talk.converse(Terminal(commands.names))
    elif once is None:
        talk.work_through(sys.stdin)
    else:
        # Literally: it may begin like a command.
        talk.answer(once)


class _Chat:
    def __init__(
        self, conversation: Conversation, commands: ChatCommands, console: Console, *, url: str, api_key: str | None
    ) -> None:
        self._conversation = conversation
        self._commands = commands
        self._console = console
        self._url = url
        self._api_key = api_key

    def greet(self) -> None:
        """Say whom one talks to. Raises HiloraError if nobody answers."""
        from hilora_cli.server_call import fetched

        models = fetched("/v1/models", self._url, self._api_key)["data"]
        base = next((one["id"] for one in models if one["parent"] is None and one["id"] != "auto"), "a base model")
        num_adapters = sum(one["parent"] is not None and one["id"] != "auto" for one in models)
        self._console.print(
            f"{base} with {num_adapters} adapters, model {self._conversation.model}. /help lists commands.",
            style="dim",
            highlight=False,
            markup=False,
        )

    def converse(self, read_line: ReadLine) -> None:
        """Read and answer until the end of the input, or until one leaves. Errors are shown, and an interrupt stops an
        answer; then it goes on."""
        from hilora.errors import HiloraError
        from hilora_cli.chat_input import read_message
        from hilora_cli.failure import print_failure

        while True:
            is_answering = False
            try:
                message = read_message(read_line)
                is_answering = True
                if self._is_over_after(message, is_command=message.startswith("/")):
                    return
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print("" if is_answering else "\n/quit or Ctrl-D leaves.", style="dim")
            except HiloraError as error:
                print_failure(error.message, error.remedy, code=error.code)

    def work_through(self, lines: Iterable[str]) -> None:
        """Answer line by line; those that begin with a command's name are commands.

        Raises:
            HiloraError: of the first line that failed. Those after it are not read.
        """
        for line in lines:
            if self._is_over_after(line.strip(), is_command=self._commands.knows(line.strip())):
                return

    def _is_over_after(self, message: str, *, is_command: bool) -> bool:
        if not message:
            return False
        if not is_command:
            self.answer(message)
            return False
        outcome = self._commands.run(message)
        if outcome.ask is not None:
            self.answer(outcome.ask)
        return outcome.is_over

    def answer(self, question: str) -> None:
        """Print the answer as it comes, and its adapters below. An interrupt stops it, and is raised again.

        Raises:
            HiloraError: what the server said.
        """
        from hilora_cli.chat_screen import show_adapters
        from hilora_cli.conversation import Answer
        from hilora_cli.server_call import with_client

        answer = Answer()
        try:
            with_client(
                self._url,
                self._api_key,
                lambda client: self._conversation.ask(client, question, answer, _write),
            )
        finally:
            if answer.text and not answer.text.endswith("\n"):
                _write("\n")
            show_adapters(self._console, answer, self._conversation.explain)


def _write(text: str) -> None:
    print(text, end="", flush=True)
