"""`hilora chat` against the running system: piped, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import time
from fcntl import ioctl
from termios import TIOCSWINSZ

import httpx
import pytest

from tests.builders.patience import patient
from tests.builders.system import HILORA, wait_until

_REVERSE = "reverse the letters and write them backwards : a f c d ="
_COPY = "copy the letters exactly as they stand : j v f v x h a ="
_ENDLESS = "hello world"
"""The base answers it without an end."""
_PRESSES = 6


def _run(system, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HILORA), "chat", "--url", system.url, *arguments],
        input=lines,
        capture_output=True,
        text=True,
        timeout=patient(120),
        check=False,
    )


class _Terminal:
    """The chat on a pseudo-terminal, and what it has shown."""

    def __init__(self, system, *arguments: str) -> None:
        self._fd, inner = pty.openpty()
        ioctl(inner, TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._process = subprocess.Popen(
            # The terminal belongs to it, so that Ctrl-C reaches it; and it is heard even if these tests run in the
            # background of a shell, which has its children ignore it.
            ["env", "--default-signal=INT", "setsid", "--ctty", str(HILORA), "chat", "--url", system.url, *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"},
        )
        os.close(inner)
        self._came = b""
        self._num_seen = 0

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def enter(self, keys: str, *, mark: str = "› ") -> None:
        """Type once the chat asks for it."""
        self.wait_for(mark)
        self.type(keys)

    def press(self, keys: str, *, until: str) -> None:
        """Type, and again where nothing comes of it, as a person does: Python's readline sleeps through a Ctrl-C that
        comes while it still draws the key before."""
        for _ in range(_PRESSES - 1):
            self.type(keys)
            try:
                return self.wait_for(until, seconds=30 / _PRESSES)
            except TimeoutError:
                continue
        self.type(keys)
        return self.wait_for(until)

    def wait_for(self, text: str, *, seconds: float = 30) -> None:
        """Read until a text is there; what comes after it is waited for by itself."""
        deadline = time.monotonic() + patient(seconds)
        while text not in (shown := self._shown()):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no {text!r} in:\n{shown}")
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self._came += os.read(self._fd, 65536)
                except OSError as error:
                    raise AssertionError(f"it ended:\n{shown}") from error
        self._num_seen += shown.index(text) + len(text)

    def _shown(self) -> str:
        # Characters and control sequences may come in pieces, so all is looked at together.
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._came.decode(errors="replace"))[self._num_seen :]

    def ends(self) -> int:
        return self._process.wait(timeout=patient(30))

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(system):
    opened: list[_Terminal] = []

    def open_terminal(*arguments: str) -> _Terminal:
        opened.append(_Terminal(system, *arguments))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


class TestPiped:
    def test_one_question_a_line_and_answers_alone_on_standard_output(self, system) -> None:
        done = _run(system, lines=f"{_REVERSE}\n\n/reset\n{_COPY}\n/quit\nnever asked\n")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "d c f a\nj v f v x h a\n"
        assert "reverse-letters" in done.stderr
        assert "copy-letters" in done.stderr
        assert "posterior" in done.stderr

    def test_once(self, system) -> None:
        done = _run(system, "--once", _REVERSE, "--model", "reverse-letters", "--explain", "off")
        assert (done.returncode, done.stdout) == (0, "d c f a\n")
        assert done.stderr.startswith("answered by reverse-letters (8 of 8 ROCs")

    def test_an_adapter_that_is_excluded_does_not_answer(self, system) -> None:
        done = _run(system, "--once", _REVERSE, "--exclude", "reverse-letters")
        assert done.returncode == 0
        assert "reverse-letters" not in done.stderr

    def test_the_first_failure_ends_it(self, system) -> None:
        done = _run(system, "--model", "nobody", lines="one\ntwo\n")
        assert done.returncode == 1
        assert done.stderr.count("[model_not_found]") == 1

    def test_commands_work_there_too(self, system, tmp_path) -> None:
        done = _run(system, lines=f"{_REVERSE}\n/route\n/adapters\n/save {tmp_path / 'talk.json'}\n")
        assert done.returncode == 0, done.stderr
        assert "log-likelihood ratio" in done.stderr
        assert "← last answer" in done.stderr
        (turn,) = json.loads((tmp_path / "talk.json").read_text())["turns"]
        assert (turn["question"], turn["answer"]) == (_REVERSE, "d c f a")
        assert [adapter["name"] for adapter in turn["hilora"]["adapters"]] == ["reverse-letters"]

    def test_nobody_answers(self) -> None:
        command = [str(HILORA), "chat", "--once", "x", "--url", "http://127.0.0.1:1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
        assert done.returncode == 3
        assert "hilora demo" in done.stderr


class TestTerminal:
    def test_a_conversation(self, terminal) -> None:
        chat = terminal()
        chat.enter(f"{_REVERSE}\n")
        chat.wait_for("d c f a")
        chat.wait_for("posterior 1.000")
        chat.enter("/model nobody\n")
        chat.wait_for("[model_not_found]")
        chat.enter("/model copy-letters\n")
        chat.wait_for("\nmodel copy-letters\r\n")
        chat.enter("/reset\n")
        chat.enter('"""copy the letters :\n')
        chat.enter('j v f ="""\n', mark="… ")
        chat.wait_for("copy-letters  8/8 ROCs")
        chat.enter("/sa\t")
        chat.wait_for("/save")
        # A line that is given up, then the end of the input.
        chat.press("\x03", until="/quit or Ctrl-D leaves.")
        chat.enter("\x04")
        assert chat.ends() == 0

    def test_an_interrupt_stops_the_answer_and_not_the_chat(self, terminal, system) -> None:
        def num_aborted() -> int:
            text = httpx.get(f"{system.url}/metrics", timeout=patient(10)).text
            found = re.findall(r'^hilora_router_requests_total\{.*outcome="aborted"\} ([0-9.]+)', text, re.MULTILINE)
            return sum(int(float(value)) for value in found)

        before = num_aborted()
        chat = terminal("--model", "testbed-base")
        chat.enter(f"{_ENDLESS}\n")
        chat.wait_for("T T T")
        chat.type("\x03")
        chat.wait_for("interrupted")
        wait_until(lambda: num_aborted() == before + 1, timeout_seconds=10, what="the server heard of it")
        chat.enter("/model auto\n")
        chat.wait_for("\nmodel auto\r\n")
        chat.enter("/reset\n")
        chat.enter(f"{_REVERSE}\n")
        chat.wait_for("d c f a")
        chat.enter("/quit\n")
        assert chat.ends() == 0
