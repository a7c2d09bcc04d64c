"""``prefline chat --web``: models side by side in a browser, with verdicts and corrections straight into the store of bad cases.

Each model has a conversation of its own: it is asked what you say, after its own answers. Answers are shown as text, not as markup.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from steps.lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from steps.lib.conversation import Conversation, Speaker

TEXT = "white-space: pre-wrap; overflow-wrap: anywhere"


@dataclass
class Playground:
    """The page and its models."""

    speakers: Sequence[Speaker]
    talk: Conversation
    """Stages, sampling and seed for every conversation of the page."""
    store: str
    """Address of the store of bad cases."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    """Models share one base: one answer at a time."""

    def serve(self, host: str, port: int) -> None:
        """Serve the page until the process is stopped.

        Raises:
            ConfigError: the extra is not installed.
        """
        try:
            from nicegui import ui
        except ImportError:
            raise ConfigError(
                "playground is not there: got no package nicegui, because it is an extra; pip install 'prefline[web]'"
            ) from None

        @ui.page("/", title="prefline")
        def page() -> None:
            self._page(ui)

        print(f"http://{host}:{port}", flush=True)
        ui.run(host=host, port=port, reload=False, show=False, show_welcome_message=False, title="prefline")

    def _page(self, ui: Any) -> None:
        """One visitor's page."""
        columns = [Column(ui, self, speaker, replace(self.talk, turns=[], answered=[])) for speaker in self.speakers]
        with ui.row().classes("w-full items-end no-wrap"):
            system = ui.textarea("System turn").props("outlined dense autogrow").classes("w-1/3")
            prompt = ui.textarea("Your turn").props("outlined dense autogrow").classes("grow")

            async def send() -> None:
                text = str(prompt.value or "").strip()
                if not text:
                    return
                prompt.value = ""
                for column in columns:
                    await column.ask(text, str(system.value or ""))

            def reset() -> None:
                for column in columns:
                    column.reset()

            ui.button("Send", on_click=send)
            ui.button("New", on_click=reset).props("flat")
        with ui.row().classes("w-full items-start no-wrap"):
            for column in columns:
                column.show()


@dataclass
class Column:
    """One model of the page."""

    ui: Any
    home: Playground
    speaker: Speaker
    talk: Conversation
    box: Any = None

    def show(self) -> None:
        """The empty column."""
        with self.ui.column().classes("grow basis-0 min-w-0"):
            self.ui.label(self.speaker.name).classes("text-h6")
            self.ui.label(f"digest {self.speaker.digest[:12]}").classes("text-caption")
            self.box = self.ui.column().classes("w-full")

    def reset(self) -> None:
        """Begin again."""
        self.talk.reset()
        self.box.clear()

    async def ask(self, text: str, system: str) -> None:
        """Ask the model, and show what it says while it comes."""
        from steps.lib.rows import Message

        if system != self.talk.system:
            self.reset()
            self.talk.system = system
        asked = [*self.talk.turns, Message(role="user", content=text)]
        whole = [*([Message(role="system", content=system)] if system else []), *asked]
        pieces: list[str] = []
        with self.box:
            self.ui.chat_message(text, name="you", sent=True).props("text-html=false")
            label = self.ui.label("…").style(TEXT).classes("answer")
        task = asyncio.create_task(asyncio.to_thread(self._answer, asked, pieces.append))
        while not task.done():
            await asyncio.sleep(0.1)
            label.set_text("".join(pieces) or "…")
        try:
            found = task.result()
        except DataError as error:
            label.set_text(str(error))
            return
        label.set_text(found.text)
        self.talk.keep(self.speaker, text, found)
        with self.box:
            self._tools(whole, found.text)

    def _answer(self, asked: Sequence[Any], show: Callable[[str], None]) -> Any:
        with self.home.busy:
            return self.talk.answer(self.speaker, asked, show)

    def _tools(self, asked: Sequence[Any], answer: str) -> None:
        """Verdicts, a correction, and what the model was shown."""
        from datetime import UTC, datetime

        from steps.lib import chat_feedback

        ui, at = self.ui, datetime.now(UTC)
        with ui.row().classes("items-center"):
            ui.button(
                icon="thumb_up",
                on_click=lambda: self._store(chat_feedback.verdict(self.speaker, asked, answer, True, at)),
            ).props("flat dense aria-label='good'")
            ui.button(
                icon="thumb_down",
                on_click=lambda: self._store(chat_feedback.verdict(self.speaker, asked, answer, False, at)),
            ).props("flat dense aria-label='bad'")
        with ui.expansion("Correct it").classes("w-full"):
            better = ui.textarea("Better answer", value=answer).props("outlined autogrow").classes("w-full")

            def correct() -> None:
                try:
                    self._store(chat_feedback.correction(self.speaker, asked, answer, str(better.value), at))
                except DataError as error:
                    ui.notify(str(error), type="negative")

            ui.button("Store the correction", on_click=correct)
        with ui.expansion("What the model was shown").classes("w-full"):
            ui.label(self._shown(asked)).style(TEXT).classes("font-mono")

    def _shown(self, asked: Sequence[Any]) -> str:
        from steps.lib import chat, models

        tokenizer = models.load_tokenizer(models.model_folder(self.speaker.artifact))
        return str(tokenizer.decode(chat.encode_prompt(tokenizer, asked)))

    def _store(self, event: dict[str, Any]) -> None:
        from steps.lib import chat_feedback
        from steps.lib.case_store import CaseStore

        with CaseStore.open(self.home.store) as store:
            told = store.ingest([event], source=chat_feedback.SOURCE)
        words = "stored" if told.new else "there already" if told.same else told.quarantined[0].detail
        self.ui.notify(f"{event['case_id']}: {words}")
