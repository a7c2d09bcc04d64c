"""The terminal side of ``prefline chat``: what a person types, and how answers are shown while they come."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.commands.words import table
from steps.lib.conversation import Conversation, Speaker, append
from steps.lib.errors import DataError, PreflineError
from steps.lib.inference import Answer
from steps.lib.rows import Message
from steps.lib.stopping import Stop, stop_signals

HELP = """\
/model NAME    the model that answers from now on, in the same conversation; without a name: which there are
/all TEXT      all models answer TEXT, side by side; the answer of the model that is talked with is kept
/all           all models answer the last turn again; nothing is kept
/system TEXT   begin again, with this system turn; without text: with none
/reset         begin again
/save FILE     add the conversation to a JSONL file, as a row that clean imports among its chats
/bad REASON    add the last answer to the bad cases, with what is wrong with it
/help          this
/quit          leave, as Ctrl-D does; Ctrl-C stops an answer
A turn that begins with a slash is typed with two."""


COMMANDS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})
"""Characters that command a terminal; an answer commands nothing."""


class Stopped(Exception):
    """Ctrl-C, while an answer was coming or a line was typed."""


class Signals(Stop):
    """Ctrl-C and SIGTERM of a conversation: a flag while something is done, and an exception out of the line that is typed.

    They are listened to in one way from the first prompt to the end. Where listeners took turns, a Ctrl-C between the last word of
    an answer and the prompt was lost, or ended everything.
    """

    typing = False

    def came(self, name: str) -> None:
        super().came(name)
        if self.typing:
            self.typing = False  # a second one would hit those who deal with the first
            self.check()

    def check(self) -> None:
        """Raise when a signal came, which is dealt with then.

        Raises:
            Stopped: Ctrl-C.
            SystemExit: SIGTERM.
        """
        if self.signal == "SIGTERM":
            raise SystemExit(143)
        if self:
            self.signal = None
            raise Stopped

    def line(self, prompt: str) -> str:
        """A line that is typed.

        A timer is a signal five times a second: CPython shows the prompt, then waits for a key or a signal, and one that comes
        in between is not seen before the next of either.

        Raises:
            Stopped: Ctrl-C, now or before.
            SystemExit: SIGTERM.
            EOFError: Ctrl-D.
            UnicodeDecodeError: it is not UTF-8.
        """
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        self.typing = True
        try:
            self.check()
            signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
            return input(prompt)
        finally:
            self.typing = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Repl:
    """A conversation in a terminal.

    Args:
        speakers: the models; the first one answers until another is chosen.
        talk: the conversation.
        bad_cases: file of /bad.
    """

    def __init__(self, speakers: Sequence[Speaker], talk: Conversation, bad_cases: Path) -> None:
        self._speakers = {one.name: one for one in speakers}
        self._now = speakers[0]
        self._talk, self._bad_cases = talk, bad_cases
        self._console = Console(highlight=False, soft_wrap=True)
        self._signals = Signals()
        self._commands: dict[str, Callable[[str], None]] = {
            "/model": self._model,
            "/all": self._all,
            "/system": self._system,
            "/reset": lambda words: self._system(None),
            "/save": self._save,
            "/bad": self._bad,
            "/help": lambda words: self._say(HELP),
        }

    def run(self) -> None:
        """Read turns and commands until /quit or the end of input."""
        import readline  # noqa: F401  # input() then edits lines, and knows how wide a Chinese character is

        self._say(f"{self._models()}\nloading {self._now.name} ...")
        self._talk.stages(self._now.artifact)
        self._say(f"{self._now.name} answers. /help lists what else can be said.")
        with stop_signals(self._signals):
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Read a line and do what it says; False at the end."""
        try:
            line = self._signals.line(f"{self._now.name}> ").strip()
        except EOFError:
            self._say("")
            return False
        except Stopped:
            self._say("\n/quit or Ctrl-D leaves")
            return True
        except UnicodeDecodeError:
            self._say(
                "the line is not UTF-8: got other bytes, because the terminal has another encoding; set it to UTF-8"
            )
            return True
        if line == "/quit":
            return False
        try:
            self._take(line)
        except Stopped:
            self._say("\nstopped; the turn is not kept")
        except PreflineError as error:
            self._console.print(Text(str(error), style="red"))
        return True

    def ask(self, prompts: Sequence[str]) -> None:
        """Let every model answer each prompt, each in a conversation of its own."""
        with stop_signals(self._signals):
            try:
                for prompt in prompts:
                    asked = [Message(role="user", content=prompt)]
                    if len(self._speakers) == 1:
                        self._answer(self._now, asked)
                    else:
                        self._compare(asked)
            except Stopped:
                raise SystemExit(130) from None

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if line.startswith("/") and not line.startswith("//"):
            if word not in self._commands:
                raise DataError(
                    f"command {word} is wrong: got no such one, because it is mistyped, or is a turn that begins so; take "
                    f"one of {', '.join([*self._commands, '/quit'])}, or begin the turn with two slashes"
                )
            self._commands[word](rest.strip())
        elif line:
            text = line.removeprefix("/") if line.startswith("//") else line
            self._talk.keep(self._now, text, self._answer(self._now, self._asked(text)))

    def _asked(self, text: str) -> list[Message]:
        return [*self._talk.turns, Message(role="user", content=text)]

    def _model(self, name: str) -> None:
        if not name:
            self._say(self._models())
            return
        if name not in self._speakers:
            raise DataError(
                f"model {name} is not here: got {', '.join(self._speakers)}, because only these were named at the start; take one "
                f"of them, or start again with it (prefline chat {' '.join([*self._speakers, name])})"
            )
        self._now = self._speakers[name]

    def _all(self, text: str) -> None:
        if not text and not self._talk.turns:
            raise DataError("/all has nothing to ask: got no text, because there is no turn yet; give one (/all TEXT)")
        found = self._compare(self._asked(text) if text else self._talk.turns[:-1])
        if text and self._now.name in found:
            self._talk.keep(self._now, text, found[self._now.name])

    def _system(self, text: str | None) -> None:
        self._talk.reset(text)
        system = self._talk.system
        self._say("the conversation begins again" + (f", with the system turn: {system}" if system else ""))

    def _save(self, file: str) -> None:
        if not file:
            raise DataError("/save has no file: got none, because the command ends there; name one (/save FILE)")
        append(Path(file).expanduser(), self._talk.chat_row())
        self._say(f"{len(self._talk.turns)} turns added to {file}")

    def _bad(self, reason: str) -> None:
        append(self._bad_cases, self._talk.bad_case(reason))
        self._say(f"the last answer of {self._talk.answered[-1].name} added to {self._bad_cases}")

    def _answer(self, speaker: Speaker, asked: Sequence[Message]) -> Answer:
        """An answer, shown while it comes."""
        found = self._until_stopped(speaker, asked, self._piece)
        self._say("" if found.finished else f" [cut at {found.tokens} tokens]")
        return found

    def _compare(self, asked: Sequence[Message]) -> dict[str, Answer]:
        """The answers of all models, in columns on a terminal, else one under the other; what fails is said in its place."""
        texts = dict.fromkeys(self._speakers, "")
        found: dict[str, Answer] = {}
        columns = self._console.is_terminal and self._console.width >= 30 * len(texts)
        for name, speaker in self._speakers.items():
            if not columns:
                self._say(f"{name}:")
            try:
                found[name] = self._in_a_column(speaker, asked, texts) if columns else self._answer(speaker, asked)
            except PreflineError as error:
                texts[name] = str(error)
                if not columns:
                    self._console.print(Text(texts[name], style="red"))
        if columns:
            self._console.print(_columns(texts), soft_wrap=False)
        return found

    def _in_a_column(self, speaker: Speaker, asked: Sequence[Message], texts: dict[str, str]) -> Answer:
        from rich.live import Live

        live = Live(_columns(texts), console=self._console, transient=True, auto_refresh=False)

        def show(piece: str) -> None:
            texts[speaker.name] += piece
            live.update(_columns(texts), refresh=bool(piece))

        with live:
            found = self._until_stopped(speaker, asked, show)
        texts[speaker.name] = found.text.translate(COMMANDS) + (
            "" if found.finished else f" [cut at {found.tokens} tokens]"
        )
        return found

    def _until_stopped(self, speaker: Speaker, asked: Sequence[Message], show: Callable[[str], None]) -> Answer:
        """Ctrl-C breaks an answer off between two tokens, not in the middle of a library's line."""

        def piece(text: str) -> None:
            self._signals.check()
            show(text.translate(COMMANDS))

        found = self._talk.answer(speaker, asked, piece)
        self._signals.check()
        return found

    def _models(self) -> str:
        width = max(map(len, self._speakers))
        return "\n".join(f"{one.name:<{width}}  {one.digest[:12]}  {one.artifact}" for one in self._speakers.values())

    def _piece(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()

    def _say(self, text: str) -> None:
        self._console.print(Text(text))


def _columns(texts: dict[str, str]) -> Table:
    """As wide as the terminal, so that nothing moves while answers grow."""
    grid = table(*texts)
    grid.expand = True
    for column in grid.columns:
        column.ratio = 1
    grid.add_row(*map(Text, texts.values()))
    return grid
