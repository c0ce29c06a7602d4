"""The page: three tabs, *Listen*, *Teach* and *Look inside*, written with Gradio.

Everything that can go wrong is told on the page, in the place of what was asked for.
"""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from espnet_hra.demo import drawing, learned, serving, showing
from espnet_hra.demo.lesson import CURVE, Lesson, Parts
from espnet_hra.demo.listening import Ears
from espnet_hra.demo.sentences import fit_all
from espnet_hra.demo.teaching import Progress, Settings, Stopped, Training
from espnet_hra.errors import DataError, TaskError, UserError
from espnet_hra.names import check_task_name

logger = logging.getLogger(__name__)

#: What the language is if nobody says.
_TASKS_OWN = "that of each task"


@dataclass
class Visit:
    """What belongs to one tab of the browser.

    Attributes:
        lesson: Its recordings.
        number: The sentence that is shown.
        task: The task that was taught last, and with which language and parts.
        language: See `task`.
        parts: See `task`.
        result: What it has brought.
    """

    lesson: Lesson
    number: int = 0
    task: str = ""
    language: str | None = None
    parts: Parts | None = None
    result: learned.Learned | None = None


class Page:
    """The page of one model.

    Args:
        ears: The model.
        settings: How tasks are taught.
        sentences: What is read aloud.
        work: A folder that goes when the page ends.
        kept: Where recordings are kept, if they are.
        english: Whether the sentences are our English ones.
    """

    def __init__(
        self,
        ears: Ears,
        settings: Settings,
        sentences: Sequence[str],
        work: Path,
        kept: Path | None = None,
        english: bool = False,
    ):
        self._ears, self._settings = ears, settings
        self._sentences, self._work, self._kept = tuple(sentences), work, kept
        self._english = english
        self._training = Training()

    def serve(self, address: str, port: int | None, browser: bool) -> None:
        """Serve the page until it is interrupted, see :func:`serving.serve`."""
        try:
            serving.serve(self.build(), address, port, browser)
        finally:
            self._training.stop()

    def build(self) -> gr.Blocks:
        """The page's parts, and what each does."""
        with gr.Blocks(
            title="espnet-hra: hear and teach tasks", analytics_enabled=False
        ) as blocks:
            gr.Markdown(
                f"# One frozen recogniser, many tasks\n\nModel `{self._ears.model}`. "
                "Everything is computed on this machine; nothing leaves it."
            )
            visit = gr.State(None, delete_callback=self._leave)
            with gr.Tabs():
                with gr.Tab("Listen"):
                    tasks = self._listen()
                with gr.Tab("Teach"):
                    sentence, name_of = self._teach(visit, tasks)
                with gr.Tab("Look inside"):
                    inside = self._look(visit)
            blocks.load(self._arrive, None, [visit, sentence, tasks, inside])
            name_of(inside)
        return blocks

    # ------------------------------------------------------------------ a visit

    def _arrive(self) -> tuple[Any, ...]:
        rate = self._ears.requirements.sample_rate
        folder = Path(tempfile.mkdtemp(prefix="lesson.", dir=self._kept or self._work))
        visit = Visit(Lesson(self._sentences, folder, rate))
        choices = gr.update(choices=list(self._ears.tasks))
        return visit, self._sentence(visit), choices, choices

    def _leave(self, visit: Visit | None) -> None:
        if visit is not None and self._kept is None:
            shutil.rmtree(visit.lesson.folder, ignore_errors=True)

    # ------------------------------------------------------------------- listen

    def _listen(self) -> Any:
        gr.Markdown(
            "Record or upload somebody who speaks, choose tasks, and see what the base "
            "and each task make of it."
        )
        audio = _recorder("Recording")
        tasks = gr.CheckboxGroup(list(self._ears.tasks), label="Tasks to compare")
        language = self._languages("Language that is spoken", _TASKS_OWN)
        said = gr.Textbox(label="What was said, if you know it (optional)", max_lines=3)
        button = gr.Button("Compare", variant="primary")
        result = gr.HTML(label="Transcripts")

        def compare(
            path: str | None, names: list[str], code: str | None, text: str
        ) -> str:
            wave = self._ears.wave(path)
            names, problems = self._ears.usable(names)
            found = self._ears.read(wave, names, _code(code))
            return _errors(problems) + showing.readings(found, (text or "").strip())

        button.click(
            _told(compare),
            [audio, tasks, language, said],
            result,
            api_visibility="private",
        )
        return tasks

    def _languages(self, label: str, first: str) -> Any:
        codes = list(self._ears.languages)
        value = "en" if self._english and first != _TASKS_OWN else first
        return gr.Dropdown(
            [first, *codes], value=value, label=label, visible=bool(codes)
        )

    # -------------------------------------------------------------------- teach

    def _teach(self, visit: Any, tasks: Any) -> tuple[Any, Callable[[Any], None]]:
        why_not = self._ears.teachable
        if why_not:
            gr.HTML(showing.note(why_not), label="Why nothing can be taught")
        gr.Markdown(
            "**1.** Read the sentences aloud, twenty or more if you can. A part of them"
            " is held out to see what was learned."
        )
        sentence = gr.HTML(label="Sentence to read")
        audio = _recorder("Read the sentence aloud, or upload a recording of it")
        with gr.Row():
            keep = gr.Button("Keep and go on", variant="primary")
            back = gr.Button("Sentence before")
            forth = gr.Button("Sentence after")
            forget = gr.Button("Forget this recording")
        many = gr.File(
            label="Or upload recordings of several sentences, in the order of their "
            "names, from this sentence on",
            file_count="multiple",
        )
        heard = gr.HTML(label="What became of the recordings")
        gr.Markdown("**2.** Give the new task a name, and teach it.")
        name = gr.Textbox(label="Name of the new task", max_lines=1)
        language = self._languages("Language of the sentences", "choose one")
        replace = gr.Checkbox(label="Replace a task of this name", value=False)
        with gr.Row():
            teach = gr.Button("Teach", variant="primary", interactive=not why_not)
            stop = gr.Button("Stop", variant="stop")
        result = gr.HTML(label="What was learned")
        file = gr.DownloadButton("Download the task", visible=False)
        gr.Markdown(
            "**3.** Would more sentences pay? Heads are taught with a quarter and half "
            "of them, which takes as long again for each."
        )
        more = gr.Button("Draw the learning curve")
        curve = gr.HTML(label="Learning curve")

        step = [visit, sentence, audio, heard]
        keep.click(self._keep, [visit, audio], step, api_visibility="private")
        many.upload(
            self._keep_many, [visit, many], [*step, many], api_visibility="private"
        )
        for button, by in ((back, -1), (forth, 1)):
            button.click(self._go(by), [visit], step, api_visibility="private")
        forget.click(self._forget, [visit], step, api_visibility="private")
        stop.click(
            self._stop, None, None, concurrency_limit=None, api_visibility="private"
        )
        more.click(self._curve, [visit], curve, api_visibility="private")

        def finish(inside: Any) -> None:
            teach.click(
                self._teach_task,
                [visit, name, language, replace],
                [visit, result, file, tasks, inside],
                api_visibility="private",
            )

        return sentence, finish

    def _sentence(self, visit: Visit) -> str:
        lesson = visit.lesson
        return showing.sentence(visit.number, lesson.sentences, lesson.recorded)

    def _shown(self, visit: Visit, text: str = "") -> tuple[Any, ...]:
        """The sentence of a visit, its recording, and what became of it."""
        path = visit.lesson.recording(visit.number)
        return visit, self._sentence(visit), path and str(path), text

    def _keep(self, visit: Visit, path: str | None) -> tuple[Any, ...]:
        with _telling() as told:
            visit.lesson.keep(visit.number, self._ears.wave(path))
            visit.number = visit.lesson.next_open(visit.number)
        if told.text:  # the recording stays, to be heard
            return visit, self._sentence(visit), gr.skip(), told.text
        return self._shown(visit)

    def _keep_many(self, visit: Visit, paths: list[str]) -> tuple[Any, ...]:
        kept, problems = 0, []
        number = visit.number
        for path in sorted(paths or [], key=lambda p: Path(p).name):
            if number >= len(visit.lesson.sentences):
                problems.append(f"{Path(path).name}: there is no sentence for it.")
                continue
            with _telling() as told:
                visit.lesson.keep(number, self._ears.wave(path))
                kept += 1
            if told.text:
                problems.append(told.plain)
            number += 1
        text = showing.note(f"{kept} recordings were kept.")
        text += "".join(showing.error(problem) for problem in problems)
        visit.number = visit.lesson.next_open(max(0, number - 1))
        return (*self._shown(visit, text), None)

    def _go(self, by: int) -> Callable[[Visit], tuple[Any, ...]]:
        def go(visit: Visit) -> tuple[Any, ...]:
            visit.number = (visit.number + by) % len(visit.lesson.sentences)
            return self._shown(visit)

        return go

    def _forget(self, visit: Visit) -> tuple[Any, ...]:
        visit.lesson.forget(visit.number)
        return self._shown(visit)

    def _stop(self) -> None:
        self._training.stop()

    def _teach_task(
        self, visit: Visit, name: str, language: str | None, replace: bool
    ) -> Iterator[tuple[Any, ...]]:
        """Teach the task, and say how far it is."""
        same = gr.skip(), gr.skip(), gr.skip()
        with _telling() as told:
            name = check_task_name((name or "").strip())
            if name in self._ears.tasks and not replace:
                raise TaskError(
                    f"There is a task {name!r} already: choose another name, or tick "
                    "that it may be replaced."
                )
            code = _code(language)
            if self._ears.languages and code is None:
                raise DataError("Choose the language of the sentences first.")
            parts = visit.lesson.parts()
            data = self._write(visit, parts, name)
            words = self._settings.command(name, data, language=code, replace=replace)
            for progress in self._training.follow(words, self._settings.updates):
                yield visit, showing.progress(progress), *same
            yield (
                visit,
                showing.progress(Progress("Reading held out ones", 0.95)),
                *same,
            )
            visit.task, visit.language, visit.parts = name, code, parts
            visit.result = learned.measure(
                self._ears,
                visit.lesson,
                parts.test,
                name,
                sentences=len(parts.train),
                language=code,
            )
            taught = self._ears.found.store.path(name)
            given = self._work / "downloads"
            given.mkdir(exist_ok=True)
            shutil.copyfile(taught, given / taught.name)
            text = showing.note(f"The task {name} is taught, and kept as {taught}.")
            text += showing.learned(visit.result, name)
            choices = gr.update(choices=list(self._ears.tasks))
            download = gr.update(
                value=str(given / taught.name), visible=True, label=f"Download {name}"
            )
            yield visit, text, download, choices, choices
        if told.text:
            yield visit, told.text, *same

    def _write(self, visit: Visit, parts: Parts, name: str) -> Path:
        """The data of a training."""
        texts = fit_all(visit.lesson.sentences, self._ears.requirements)
        return visit.lesson.write(texts, parts, name)

    def _curve(self, visit: Visit) -> Iterator[str]:
        """Teach heads with fewer sentences, and draw what each brings."""
        with _telling() as told:
            if visit.result is None or visit.parts is None:
                raise DataError("Teach a task first.")
            found = [visit.result]
            sizes = {len(visit.parts.train)}
            for i, share in enumerate(sorted(CURVE, reverse=True)):
                parts = visit.lesson.smaller(visit.parts, share)
                count = len(parts.train)
                if count in sizes:
                    continue
                sizes.add(count)
                name = f"of-{count}-sentences"
                data = self._write(visit, parts, name)
                out = data / f"{name}.safetensors"
                words = self._settings.command(
                    name, data, language=visit.language, out=out
                )
                for progress in self._training.follow(words, self._settings.updates):
                    text = f"{count} sentences: {progress.text}"
                    all_in_all = (i + progress.share) / len(CURVE)
                    yield showing.progress(Progress(text, all_in_all))
                one = learned.measure_file(
                    self._ears,
                    visit.lesson,
                    parts.test,
                    out,
                    sentences=count,
                    language=visit.language,
                )
                found.insert(0, one)
            figure = drawing.curve(found)
            alt = "Learning curve: the numbers are in the table below."
            yield (
                showing.note(learned.outlook(found))
                + drawing.image(figure, alt)
                + showing.curve(found)
            )
        if told.text:
            yield told.text

    # --------------------------------------------------------------------- look

    def _look(self, visit: Any) -> Any:
        gr.Markdown(
            "What each layer's adapter adds, and what the controller's units do, while "
            "tasks read a recording: this one, or those of the tab *Teach*."
        )
        tasks = gr.CheckboxGroup(list(self._ears.tasks), label="Tasks to look at")
        audio = _recorder("Recording to look at")
        button = gr.Button("Look inside", variant="primary")
        result = gr.HTML(label="What was found")

        def look(visit: Visit, names: list[str], path: str | None) -> str:
            from espnet_hra.espnet.diagnosing import Heard, diagnose
            from espnet_hra.report import diagnosis, diagnosis_picture

            if not names:
                raise TaskError("Choose a task, or several.")
            names, problems = self._ears.usable(names)
            if not names:
                return _errors(problems)
            lesson = visit.lesson
            kept = [lesson.recording(number) for number in lesson.recorded]
            paths = [path] if path else [str(p) for p in kept]
            if not paths:
                raise DataError("Record or upload something first.")
            heard = [Heard(self._ears.wave(p), names) for p in paths]
            with self._ears.lock:
                found = diagnose(self._ears.speech2text, heard, gradients=False)
            figure = diagnosis_picture.draw(found)
            alt = "Over the layers, what tasks add; the numbers are in the tables."
            parts = [_errors(problems), drawing.image(figure, alt)]
            for caption, rows in (
                ("Layers (means over the tasks)", diagnosis.rows(found)),
                ("Tasks side by side", diagnosis.task_rows(found)),
            ):
                head, *body = rows
                cells = [[showing.escape(cell) for cell in row] for row in body]
                numbers = range(1, len(head))
                parts.append(showing.table(caption, head, cells, numbers))
            parts.append(showing.note(diagnosis.summary(found)))
            for line in diagnosis.warnings(found):
                parts.append(showing.note(f"Warning: {line}"))
            return "".join(parts)

        button.click(
            _told(look), [visit, tasks, audio], result, api_visibility="private"
        )
        return tasks


def _recorder(label: str) -> Any:
    return gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label=label,
        editable=False,
        buttons=["download"],  # no button that shares recordings on the web
    )


def _errors(problems: Sequence[str]) -> str:
    """What is wrong with tasks that are left out, as HTML."""
    return "".join(map(showing.error, problems))


def _code(language: str | None) -> str | None:
    """The code that was chosen in a list of languages, if one was."""
    return language if language and " " not in language else None


# ---------------------------------------------------------------------- what goes wrong


@dataclass
class _Told:
    """What went wrong, as HTML and plainly; empty if nothing."""

    text: str = ""
    plain: str = ""


@contextlib.contextmanager
def _telling() -> Iterator[_Told]:
    """A block whose errors end it, and are told afterwards."""
    told = _Told()
    try:
        yield told
    except Stopped as e:
        told.plain = str(e)
        told.text = showing.note(told.plain)
    except UserError as e:
        told.plain = str(e)
        told.text = showing.error(told.plain)
    except Exception as e:  # the page must stay up
        logger.exception("the page")
        told.plain = f"This should not have happened: {type(e).__name__}: {e}"
        told.text = showing.error(told.plain)


def _told(function: Callable[..., str]) -> Callable[..., str]:
    """A function that returns what went wrong in the place of its result."""

    def safe(*args: Any) -> str:
        result = ""
        with _telling() as told:
            result = function(*args)
        return told.text or result

    return safe
