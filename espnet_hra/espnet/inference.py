"""Decoding with tasks: ESPnet's ``Speech2Text``, strict loading, and greedy CTC.

A model may have any number of tasks in files beside it (see
:mod:`espnet_hra.tasks.store`). They are known at once and fetched when they are used
(see :mod:`espnet_hra.tasks.cache`).
"""

import argparse
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from espnet2.bin import asr_inference
from espnet2.legacy.nets.beam_search import Hypothesis

from espnet_hra.encoder import selection
from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError, DataError, TaskError
from espnet_hra.espnet.inputs import (
    Wave,
    as_wave,
    batch_names,
    check_greedy,
    named,
    out_of_memory,
)
from espnet_hra.espnet.models import Found, find_model, find_tasks, opened
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.task import HRATask
from espnet_hra.espnet.whisper import without_weights
from espnet_hra.espnet.whisper_reader import (
    NO_LANGUAGE,
    WhisperReader,
    reads_with_whisper,
)
from espnet_hra.names import listing
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import FOLDER, TaskStore, check_name

#: One n-best list: (text, tokens, token ids, hypothesis), as ESPnet returns it.
NBest = list[tuple[str | None, list[str], list[int], Any]]
#: A model and its configuration.
Built = tuple[torch.nn.Module, argparse.Namespace]

#: Two threads may choose the same file or pack, which is loaded once.
_loading = threading.RLock()


class _Builder:
    """Stands for the ESPnet task that ESPnet's inference builds its model with.

    Args:
        base: Where the frozen base is, if not where the configuration says.
        ready: A model that is there already, with its configuration.
    """

    def __init__(self, base: str | None, ready: Built | None):
        self._base, self._ready = base, ready

    def build_model_from_file(
        self, config_file: Any = None, model_file: Any = None, device: str = "cpu"
    ) -> Built:
        """The model, see :meth:`HRATask.build_model_from_file`."""
        if self._ready is not None:
            return self._ready
        return HRATask.build_model_from_file(
            config_file, model_file, device, base=self._base
        )


class Speech2Text(asr_inference.Speech2Text):
    """ESPnet's ``Speech2Text`` for adapted models.

    Args:
        asr_train_config: Saved configuration of the adaptation.
        asr_model_file: Its checkpoint.
        task: The task to begin with, or one per utterance; see :meth:`set_task`.
        ctc_greedy: Take the best CTC symbol of each frame instead of a beam search:
            fast, batched, without a decoder or language model. auto: where texts are
            not Whisper's.
        pretrained_model: Where the frozen base is, if not where the configuration says.
        store: Task files to choose from; by default those in the folder ``tasks``
            beside the checkpoint. They go before tasks of the checkpoint.
        max_loaded_tasks: Most heads of the store that are kept in memory, those that
            were used last; by default as many as take 256 MiB. See
            ``AdaptedEncoder.attach_store``.
        ready: A model that is there already and its configuration, in place of files.
        language: Of a Whisper, the language of all utterances (a code such as ``fr``);
            by default that of each one's task, or else the one that it hears.
        **kwargs: As for ESPnet's ``Speech2Text``.

    Examples:
        >>> speech2text = Speech2Text.from_pretrained("exp/asr_hra", task="fr_june")
        >>> text, *_ = speech2text(waveform)[0]
        >>> speech2text([wave, another], task=["fr_june", "it_carlo"])

    Raises:
        BaseModelError: The checkpoint or its base is incomplete or another.
        TaskError: The task is unknown.
    """

    def __init__(
        self,
        asr_train_config: Path | str | None = None,
        asr_model_file: Path | str | None = None,
        *args: Any,
        task: None | str | Sequence[str] = None,
        ctc_greedy: bool | Literal["auto"] = False,
        pretrained_model: str | None = None,
        store: TaskStore | None = None,
        max_loaded_tasks: int | None = None,
        ready: Built | None = None,
        language: str | None = None,
        **kwargs: Any,
    ):
        if ready is not None:
            config = vars(ready[1])
        else:
            asr_train_config, asr_model_file, config = opened(
                asr_train_config, asr_model_file
            )
        whisper = reads_with_whisper(config)
        ctc_greedy = not whisper if ctc_greedy == "auto" else ctc_greedy
        if whisper:  # greedy, unless a beam is asked for
            kwargs = {"beam_size": 1, **kwargs}
            if (config.get("model_conf") or {}).get("ctc_weight") == 0.0:
                kwargs["ctc_weight"] = 0.0
        if ctc_greedy:
            # The beam is not used; the smallest keeps ESPnet's constructor content.
            kwargs = {**kwargs, "beam_size": 1}
        builder = _Builder(pretrained_model, ready)
        with standing_in(asr_inference, ASRTask=builder), without_weights(config):
            super().__init__(asr_train_config, asr_model_file, *args, **kwargs)
        if ctc_greedy:
            check_greedy(self.asr_model)
        self.ctc_greedy = ctc_greedy
        if store is None and asr_model_file is not None:
            store = TaskStore(Path(asr_model_file).parent / FOLDER)
        self.store = store
        self._whisper: WhisperReader | None = None
        if whisper and not ctc_greedy:
            self._whisper = WhisperReader(self, language, kwargs["beam_size"] > 1)
        elif language is not None:
            raise ConfigError(f"language {language!r}: {NO_LANGUAGE}")
        self._sources: dict[str, str] = {}
        if self._heads is not None and store is not None:
            encoder = self.asr_model.encoder
            encoder.attach_store(
                store, max_loaded=max_loaded_tasks, behind=encoder.tasks
            )
        if task is not None:
            self.set_task(task)

    @classmethod
    def from_pretrained(
        cls, model_tag: str | None = None, **kwargs: Any
    ) -> "Speech2Text":
        """Build from an experiment folder, a pack, or a tag of the model zoo or hub.

        Args:
            model_tag: Folder, zip, tag of the model zoo, or repository of the hub; of
                an adaptation, a base pack, or a task pack (which opens the base that it
                names). None if the files are in `kwargs`.
            **kwargs: As for the constructor, `task` above all.

        Raises:
            BaseModelError: There is no such model, or it is incomplete.
            TaskError: The task is unknown.
        """
        found: Found | None = None
        if model_tag is not None:
            found = find_model(str(model_tag))
            kwargs = {
                "asr_train_config": found.config_file,
                "asr_model_file": found.model_file,
                "store": found.store,
                **{k: v for k, v in kwargs.items() if v is not None},
            }
        task = kwargs.pop("task", None)
        speech2text = cls(**kwargs)
        extra = found.extra if found is not None else ()
        loaded = [speech2text.load_task(path, replace=True) for path in extra]
        if task is not None:
            speech2text.set_task(task)
        elif len(loaded) == 1:
            speech2text.set_task(loaded[0])  # the one that was asked for
        return speech2text

    # --------------------------------------------------------------------- tasks

    @property
    def _heads(self) -> Any:
        """The bank of tasks; None if the model has no adapter."""
        encoder = self.asr_model.encoder
        return encoder.adapter.heads if isinstance(encoder, AdaptedEncoder) else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, loaded or not; empty if the model has no adapter."""
        return () if self._heads is None else self.asr_model.encoder.tasks

    def set_task(self, task: None | str | Sequence[str]) -> None:
        """Choose the task of the following utterances, for all threads.

        Args:
            task: A name, a list with one name per utterance of a batch, or None for the
                plain backbone. Instead of a name also the path of a task file, or of a
                task pack (folder, zip, repository of the hub) with one task. What is
                not in memory yet is fetched and verified.

        Raises:
            TaskError: The task is unknown, or made for another model.
        """
        if self._heads is None:
            raise TaskError(f"task {task!r}: this model has no adapter and no tasks")
        self.asr_model.encoder.set_task(self._loaded(task))

    def load_task(
        self, source: str | Path, *, replace: bool = False, name: str = ""
    ) -> str:
        """Load a task from a file or task pack, without choosing it.

        Args:
            source: Path of a task file, or a task pack (folder, zip, repository of the
                hub) with one task.
            replace: Whether it may take the place of a task of the same name.
            name: Refuse a task of another name.

        Returns:
            Its name.

        Raises:
            TaskError: There is none, or not one, or it was made for another model.
        """
        if self._heads is None:
            raise TaskError(f"{source}: this model has no adapter and no tasks")
        files = find_tasks(str(source))
        if len(files) != 1:
            raise TaskError(
                f"{source}: expected one task, found {len(files)} "
                f"({listing(path.stem for path in files)}); load them one by one"
            )
        if name:
            check_name(files[0], name, str(taskfile.describe(files[0]).get("task")))
        return self.asr_model.encoder.load_task(files[0], replace=replace)

    def _loaded(self, task: Any) -> Any:
        """A choice with everything loaded that it names."""
        if isinstance(task, (list, tuple)):
            return [self._loaded_name(name) for name in task]
        return self._loaded_name(task)

    def _loaded_name(self, task: Any) -> Any:
        if not isinstance(task, (str, Path)) or task in self._heads:
            return task
        with _loading:
            return self._load_once(str(task))

    def _load_once(self, task: str) -> str:
        if self._sources.get(task) in self._heads:
            return self._sources[task]
        path = Path(task).expanduser()
        if self.store is not None and path.exists():
            if self.store.version(path.stem) is not None:
                if path.samefile(self.store.path(path.stem)):
                    return path.stem  # a file of the store, which knows it already
        elif "/" not in task and not path.exists():
            raise TaskError(
                f"unknown task {task!r}; known tasks: {listing(self._heads)}"
            )
        self._sources[task] = self.load_task(task)
        return self._sources[task]

    # ------------------------------------------------------------------ decoding

    @torch.no_grad()
    def __call__(
        self,
        speech: Wave | Sequence[Wave],
        utt2task: Wave | Sequence[Wave] | None = None,
        utt2lang: Wave | None = None,
        *,
        task: None | str | Sequence[str] = None,
    ) -> Any:
        """Decode one utterance, or a list of them as one batch.

        Args:
            speech: Samples, shape (samples,), or a list of such.
            utt2task: The utterance's task as the data loader gives it, shape
                (characters,), or a list with one for each.
            utt2lang: The utterance's language likewise; for Whisper only.
            task: The task of this call, or one per utterance; otherwise (None) the one
                that was set.

        Returns:
            An n-best list of (text, tokens, token ids, hypothesis), or a list of them.

        Raises:
            TaskError: A task is unknown, or none was chosen among several.
        """
        if utt2task is not None:
            if task is not None:
                raise TaskError("give the task of a call by task or by utt2task, once")
            task = named(utt2task)
        if task is not None:
            if self._heads is None:
                raise TaskError(f"task {task!r}: this model has no adapter")
            with self.asr_model.encoder.use_task(self._loaded(task)):
                return self(speech, utt2lang=utt2lang)
        if isinstance(speech, list | tuple):
            return self.batch_decode(speech)
        wave = as_wave(speech)
        with self._request(None, None):
            if self.ctc_greedy or self._whisper is not None:
                waves: list[Any] = [wave]
                spoken = None if utt2lang is None else torch.as_tensor(utt2lang)[None]
                return self.batch_decode(waves, utt2lang=spoken)[0]
            return super().__call__(wave)

    @torch.no_grad()
    def batch_decode(
        self,
        speech: Wave | Sequence[Wave],
        speech_lengths: Wave | Sequence[int] | None = None,
        utt2task: torch.Tensor | None = None,
        utt2task_lengths: torch.Tensor | None = None,
        utt2lang: torch.Tensor | None = None,
        utt2lang_lengths: torch.Tensor | None = None,
    ) -> list[NBest]:
        """Decode a batch; every utterance keeps its task.

        ESPnet's own sorts by length and halves a batch that runs out of memory, and
        knows nothing of tasks. Here the encoder runs first, in the given order and with
        each utterance's task; the search works on what it returns.

        Args:
            speech: List of utterances, or padded, (utterances, samples).
            speech_lengths: Number of samples of each, for padded speech.
            utt2task: Task names as the data loader gives them, padded.
            utt2task_lengths: Their lengths.
            utt2lang: Languages likewise; for Whisper only.
            utt2lang_lengths: Their lengths.

        Returns:
            One n-best list per utterance, in the given order.
        """
        if isinstance(speech, (list, tuple)):
            waves = [as_wave(wave) for wave in speech]
        elif speech_lengths is None:
            raise ValueError("speech_lengths is required for a padded speech array")
        else:
            lengths = torch.as_tensor(speech_lengths).tolist()
            waves = [as_wave(w[:n]) for w, n in zip(speech, lengths)]
        with self._request(utt2task, utt2task_lengths) as choice:
            if self._whisper is not None:
                spoken = batch_names(utt2lang, utt2lang_lengths)
                spoken = spoken or [""] * len(waves)
                read = self._whisper.read
                return self._split_if_too_large(read, waves, choice, spoken)
            if utt2lang is not None:
                raise ConfigError(f"utt2lang: {NO_LANGUAGE}")
            if self.ctc_greedy:
                return self._split_if_too_large(self._greedy, waves, choice)
            if choice is None or isinstance(choice, str):
                return super().batch_decode(waves)  # one task: nothing to mix up
            return self._split_if_too_large(self._search, waves, choice)

    @contextlib.contextmanager
    def _request(
        self, names: torch.Tensor | None, lengths: torch.Tensor | None
    ) -> Iterator[selection.Choice]:
        """A block in which neither the choice nor a chosen task changes.

        Encoder, CTC and search use the tasks one after the other, and other threads may
        choose, replace or remove tasks in the meantime.

        Args:
            names: The batch's task names as the data loader gives them; None for the
                choice in force.
            lengths: Their lengths.

        Raises:
            TaskError: A task is unknown, or none was chosen among several.
        """
        if self._heads is None:
            yield None
            return
        encoder = self.asr_model.encoder
        given = batch_names(names, lengths)
        if given is None:
            choice = encoder.chosen_task
        else:
            choice = selection.as_choice(self._loaded(given), self._heads)
        used = selection.distinct(choice)
        with self._heads.hold(used), selection.block(encoder, choice):
            yield choice

    def _split_if_too_large(
        self,
        decode: Callable[..., list[NBest]],
        waves: list[torch.Tensor],
        choice: selection.Choice,
        *others: Sequence[Any],
    ) -> list[NBest]:
        """Decode a batch, in halves if memory runs out.

        What belongs to an utterance goes with it: its task, and items of `others`.
        """
        names = choice if isinstance(choice, tuple) else None
        if names is not None and len(names) != len(waves):
            raise TaskError(
                f"{len(names)} tasks were chosen for a batch of {len(waves)} "
                "utterances: give one name for all, or one per utterance"
            )
        try:
            if names is None:
                return decode(waves, *others)
            with self.asr_model.encoder.use_task(names):
                return decode(waves, *others)
        except Exception as e:  # only running out of memory is handled
            if not out_of_memory(e):
                raise
            if len(waves) == 1:
                raise DataError(
                    f"an utterance of {len(waves[0]):,} samples does not fit into "
                    "memory: cut it where nobody speaks, and decode the parts"
                ) from e
        half = (len(waves) + 1) // 2
        return [
            result
            for part in (slice(None, half), slice(half, None))
            for result in self._split_if_too_large(
                decode,
                waves[part],
                choice if names is None else names[part],
                *(other[part] for other in others),
            )
        ]

    def _encode(self, waves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output (b, frames, d) and its lengths (b)."""
        dtype = getattr(torch, self.dtype)
        speech = torch.nn.utils.rnn.pad_sequence(
            [wave.to(dtype) for wave in waves], batch_first=True
        )
        lengths = torch.tensor([wave.numel() for wave in waves])
        encoded, frames = self.asr_model.encode(
            speech.to(self.device), lengths.to(self.device)
        )
        return (encoded[0] if isinstance(encoded, tuple) else encoded), frames

    def _search(self, waves: list[torch.Tensor]) -> list[NBest]:
        """ESPnet's beam search over a batch."""
        encoded, frames = self._encode(waves)
        if not self._can_batch_decode():
            results = []
            names = self.asr_model.encoder.tasks_of_batch(len(waves))
            for x, n, name in zip(encoded, frames, names):
                # The CTC projection may be the task's own.
                with self.asr_model.encoder.use_task(name):
                    results.append(self._decode_single_sample(x[:n]))
            return results
        found = self.beam_search(
            x=encoded,
            x_lengths=frames,
            maxlenratio=self.maxlenratio,
            minlenratio=self.minlenratio,
        )
        return [self._hyps_to_results(hypotheses) for hypotheses in found]

    def _greedy(self, waves: list[torch.Tensor]) -> list[NBest]:
        """The best CTC symbol of each frame, repeats and blanks removed."""
        encoded, frames = self._encode(waves)
        scores, symbols = self.asr_model.ctc.log_softmax(encoded).max(dim=-1)  # [b, t]
        results: list[NBest] = []
        for score, symbol, n in zip(scores, symbols, frames.tolist()):
            ids = torch.unique_consecutive(symbol[:n])
            ids = ids[ids != self.asr_model.blank_id]
            tokens = self.converter.ids2tokens(ids.tolist())
            text = (
                None if self.tokenizer is None else self.tokenizer.tokens2text(tokens)
            )
            edge = ids.new_tensor([self.asr_model.sos])
            hypothesis = Hypothesis(
                yseq=torch.cat([edge, ids, edge]), score=float(score[:n].sum())
            )
            results.append([(text, tokens, ids.tolist(), hypothesis)])
        return results
