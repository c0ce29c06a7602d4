"""Decoding with tasks: what our counterparts of ESPnet's inference classes share.

A model is loaded strictly, whatever ESPnet task it is of, and may have any number of
tasks in files beside it (see :mod:`espnet_hra.tasks.store`). They are known at once and
fetched when they are used (see :mod:`espnet_hra.tasks.cache`).
"""

import argparse
import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from espnet2.legacy.nets.beam_search import Hypothesis

from espnet_hra.encoder import effect, selection
from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import BaseModelError, ConfigError, TaskError
from espnet_hra.espnet import padding, quantizing
from espnet_hra.espnet.inputs import Wave, batch_names, check_greedy, named
from espnet_hra.espnet.kinds import KINDS, adaptable
from espnet_hra.espnet.models import Found, find_model, find_tasks
from espnet_hra.espnet.seam import standing_in
from espnet_hra.espnet.task import espnet_task
from espnet_hra.files.config import read_yaml
from espnet_hra.names import listing
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import FOLDER, TaskStore, check_name

#: One n-best list: (text, tokens, token ids, ..., hypothesis), as ESPnet returns it.
NBest = list[tuple[Any, ...]]
#: A model and its configuration.
Built = tuple[torch.nn.Module, argparse.Namespace]

#: What others are told that are given a language.
NO_LANGUAGE = (
    "only Whisper and models of the ESPnet tasks s2t and s2t_ctc are told a language; "
    "leave it out"
)

#: Two threads may choose the same file or pack, which is loaded once.
_loading = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was said, and what the task had to do with it.

    Attributes:
        text: The best text.
        nbest: All that ESPnet's class returns of an utterance.
        task: The task; None for the plain backbone.
        checksum: The checksum of its file, or of its values, see
            ``AdaptedEncoder.task_checksum``.
        effect: How far the task moves the encoder's output, relative to the plain
            backbone's: ``||y - y0|| / ||y0||``. At 0 the task does nothing there.
    """

    text: str
    nbest: Any
    task: str | None
    checksum: str | None
    effect: float


class _Builder:
    """Stands for the ESPnet task that ESPnet's inference builds its model with.

    Args:
        name: The ESPnet task.
        base: Where the frozen base is, if not where the configuration says.
        ready: A model that is there already, with its configuration.
        quantize: The option by which ESPnet will quantise the model, if any.

    Attributes:
        built: The model, once it was asked for.
    """

    def __init__(
        self,
        name: str,
        base: str | None,
        ready: Built | None,
        quantize: str | None,
    ):
        self._name, self._base, self._ready = name, base, ready
        self._quantize = quantize
        self.built: torch.nn.Module | None = None

    def build_model_from_file(
        self, config_file: Any = None, model_file: Any = None, device: str = "cpu"
    ) -> Built:
        """The model, see ``build_model_from_file`` of :class:`Adapting`."""
        made = self._ready or espnet_task(self._name).build_model_from_file(
            config_file, model_file, device, base=self._base
        )
        self.built = made[0]
        if self._quantize is not None:
            quantizing.check_method(self.built, self._quantize)
        return made

    def build_preprocess_fn(self, args: argparse.Namespace, train: bool) -> Any:
        """ESPnet's own: there are no streams of tasks where it is asked for."""
        kind = KINDS[self._name]
        task = getattr(import_module(kind.module), kind.task)
        return task.build_preprocess_fn(args, train)


class Decoding:
    """Mixin for ESPnet's inference classes: strict loading, and the choice of tasks.

    Args:
        *args: As for ESPnet's class, configuration and checkpoint first.
        task: The task to begin with, or one per utterance; see :meth:`set_task`.
        ctc_greedy: Take the best CTC symbol of each frame instead of a beam search.
            auto: where texts are not Whisper's.
        pretrained_model: Where the frozen base is, if not where the configuration says.
        store: Task files to choose from; by default those in the folder ``tasks``
            beside the checkpoint. They go before tasks of the checkpoint.
        max_loaded_tasks: Most heads of the store that are kept in memory, those that
            were used last; by default as many as take 256 MiB. See
            ``AdaptedEncoder.attach_store``.
        ready: A model that is there already and its configuration, in place of files.
        **kwargs: As for ESPnet's class.

    Raises:
        BaseModelError: The checkpoint or its base is incomplete or another, or the
            model is of another ESPnet task.
        TaskError: The task is unknown.
    """

    #: Whose names ESPnet's class builds its model by, and which ESPnet task each is.
    built_by: Mapping[tuple[str, str], str]
    #: What ESPnet's class is told for the greedy search; the beam is not used then.
    greedy_options: Mapping[str, Any] = {"beam_size": 1}
    #: The model's CTC.
    ctc_name = "ctc"

    converter: Any
    tokenizer: Any

    def __init__(
        self,
        *args: Any,
        task: None | str | Sequence[str] = None,
        ctc_greedy: bool | Literal["auto"] = False,
        pretrained_model: str | None = None,
        store: TaskStore | None = None,
        max_loaded_tasks: int | None = None,
        ready: Built | None = None,
        **kwargs: Any,
    ):
        if ctc_greedy:
            kwargs = {**kwargs, **self.greedy_options}
        config_file = args[0] if args else kwargs.get(self._kind().files[0])
        if config_file is not None and ready is None:
            read_yaml(Path(config_file), BaseModelError)  # ESPnet's errors are raw
        quantize = quantizing.asked(kwargs)
        builders = []
        with contextlib.ExitStack() as stack:
            for (module, name), kind in self.built_by.items():
                builder = _Builder(kind, pretrained_model, ready, quantize)
                builders.append(builder)
                stack.enter_context(
                    standing_in(import_module(module), **{name: builder})
                )
            super().__init__(*args, **kwargs)
        if quantize is not None:
            (exact,) = (one.built for one in builders if one.built is not None)
            quantizing.settle(self.model, exact, quantize)
        padding.prepare(self.model)
        if ctc_greedy:
            check_greedy(self.model, self.ctc_name)
        self.ctc_greedy = bool(ctc_greedy)
        model_file = args[1] if len(args) > 1 else kwargs.get(self._kind().files[1])
        if store is None and model_file is not None:
            store = TaskStore(Path(model_file).parent / FOLDER)
        self.store = store
        self._sources: dict[str, str] = {}
        if self._heads is not None and store is not None:
            encoder = self.model.encoder
            encoder.attach_store(
                store, max_loaded=max_loaded_tasks, behind=encoder.tasks
            )
        if task is not None:
            self.set_task(task)

    @classmethod
    def _kind(cls) -> Any:
        return KINDS[next(iter(cls.built_by.values()))]

    @property
    def model(self) -> Any:
        """ESPnet's model."""
        return getattr(self, f"{self._kind().attribute}_model")

    @property
    def train_args(self) -> argparse.Namespace:
        """The configuration of its training."""
        return getattr(self, f"{self._kind().attribute}_train_args")

    @classmethod
    def from_pretrained(cls, model_tag: str | None = None, **kwargs: Any) -> "Decoding":
        """Build from an experiment folder, a pack, or a tag of the model zoo or hub.

        Args:
            model_tag: Folder, zip, tag of the model zoo, or repository of the hub; of
                an adaptation, a base pack, or a task pack (which opens the base that it
                names). None if the files are in `kwargs`.
            **kwargs: As for the constructor, `task` above all.

        Returns:
            The class that opens models of this ESPnet task: another one where the
            model is of another.

        Raises:
            BaseModelError: There is no such model, or it is incomplete.
            TaskError: The task is unknown.
        """
        found: Found | None = None
        if model_tag is not None:
            found = find_model(str(model_tag))
            kind = adaptable(found.espnet_task, found.source)
            if kind.name not in cls.built_by.values():
                cls = cls._opener(kind.name, found.source)
            config, model = kind.files
            kwargs = {
                config: found.config_file,
                model: found.model_file,
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

    @classmethod
    def _opener(cls, name: str, source: str) -> type["Decoding"]:
        """The class like this one for models of an ESPnet task."""
        return opener(name)

    # --------------------------------------------------------------------- tasks

    @property
    def _heads(self) -> Any:
        """The bank of tasks; None if the model has no adapter."""
        encoder = self.model.encoder
        return encoder.adapter.heads if isinstance(encoder, AdaptedEncoder) else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, loaded or not; empty if the model has no adapter."""
        return () if self._heads is None else self.model.encoder.tasks

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
        self.model.encoder.set_task(self._loaded(task))

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
        return self.model.encoder.load_task(files[0], replace=replace)

    def _given(
        self,
        utt2task: str | Wave | Sequence[str | Wave] | None,
        task: None | str | Sequence[str],
    ) -> Any:
        """The task that a call names, or one per utterance; None if it names none.

        Args:
            utt2task: As the data loader gives it.
            task: Its name.

        Raises:
            TaskError: It names two, or there are none.
        """
        if utt2task is not None:
            if task is not None:
                raise TaskError("give the task of a call by task or by utt2task, once")
            task = named(utt2task)
        if task is not None and self._heads is None:
            raise TaskError(f"task {task!r}: this model has no adapter")
        return self._loaded(task)

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

    @contextlib.contextmanager
    def _request(
        self, names: torch.Tensor | None, lengths: torch.Tensor | None
    ) -> Iterator[selection.Choice]:
        """A block in which neither the choice nor a chosen task changes.

        Nor does an utterance change another one's features. Encoder, CTC and search use
        the tasks one after the other, and other threads may choose, replace or remove
        tasks in the meantime.

        Args:
            names: The batch's task names as the data loader gives them; None for the
                choice in force.
            lengths: Their lengths.

        Raises:
            TaskError: A task is unknown, or none was chosen among several.
        """
        if self._heads is None:
            with padding.alone():
                yield None
            return
        encoder = self.model.encoder
        given = batch_names(names, lengths)
        if given is None:
            choice = encoder.chosen_task
        else:
            choice = selection.as_choice(self._loaded(given), self._heads)
        used = selection.distinct(choice)
        with (
            self._heads.hold(used),
            selection.block(encoder, choice),
            padding.alone(),
        ):
            yield choice

    def measured(self, speech: Wave, task: str | None = None) -> "Transcript":
        """Decode an utterance, and say what its task had to do with it.

        The encoder runs twice, with the task and without.

        Args:
            speech: Samples, shape (samples,).
            task: Its task; otherwise (None) the one that was set.

        Raises:
            TaskError: The task is unknown, or none was chosen among several.
        """
        given: Any = contextlib.nullcontext()
        if task is not None:
            if self._heads is None:
                raise TaskError(f"task {task!r}: this model has no adapter")
            given = self.model.encoder.use_task(self._loaded(task))
        with given, self._request(None, None) as choice, effect.watch() as moved:
            decode: Any = self
            nbest = decode(speech)
            name = choice if isinstance(choice, str) else None
            checksum = self.model.encoder.task_checksum(name) if name else None
        found = effect.effect(moved) if name else 0.0
        return Transcript(self.text_of(nbest), nbest, name, checksum, found)

    def set_language(self, tag: str | None) -> None:
        """Say which language is spoken, to models that are told.

        Args:
            tag: A code such as ``fr`` for Whisper, or ESPnet's tag such as ``fra``;
                None for what the model does without.

        Raises:
            ConfigError: The model is not told, or has no such tag.
        """
        if tag is not None:
            raise ConfigError(f"language {tag!r}: {NO_LANGUAGE}")

    @staticmethod
    def text_of(nbest: NBest) -> str:
        """What was said, of an n-best list: the best text, without tags."""
        return nbest[0][0] or ""

    def _best_path(self, encoded: torch.Tensor, frames: torch.Tensor) -> list[NBest]:
        """The best CTC symbol of each frame, repeats and blanks removed.

        A hypothesis's ``scores`` say of how many ``frames`` it is, and its ``margin``:
        how far the second best symbol was behind, where it was nearest.

        Args:
            encoded: Output of the encoder, (b, t, d).
            frames: Its lengths, (b).
        """
        model, converter, tokenizer = self.model, self.converter, self.tokenizer
        top, best = model.ctc.log_softmax(encoded).topk(2, dim=-1)  # [b, t, 2]
        results: list[NBest] = []
        for score, symbol, n in zip(top, best[..., 0], frames.tolist()):
            ahead = (score[:n, 0] - score[:n, 1]).min() if n else math.inf
            ids = torch.unique_consecutive(symbol[:n])
            ids = ids[ids != model.blank_id]
            tokens = converter.ids2tokens(ids.tolist())
            text = None if tokenizer is None else tokenizer.tokens2text(tokens)
            edge = ids.new_tensor([model.sos])
            hypothesis = Hypothesis(
                yseq=torch.cat([edge, ids, edge]),
                score=float(score[:n, 0].sum()),
                scores={"margin": float(ahead), "frames": float(n)},
            )
            results.append([(text, tokens, ids.tolist(), hypothesis)])
        return results


def opener(name: str) -> type[Decoding]:
    """Our class that opens models of an ESPnet task."""
    module, _, found = KINDS[name].opens.partition(":")
    return getattr(import_module(module), found)
