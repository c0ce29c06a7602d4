"""Decoding with tasks: ESPnet's ``Speech2Text``, strict loading, and greedy CTC."""

import argparse
import contextlib
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union
from unittest import mock

import numpy as np
import torch
from espnet2.bin import asr_inference
from espnet2.legacy.nets.beam_search import Hypothesis
from espnet2.torch_utils.device_funcs import is_out_of_memory_error

from espnet_hra.base_model import open_base
from espnet_hra.errors import TaskError
from espnet_hra.task import HRATask

Wave = Union[torch.Tensor, np.ndarray]
#: One n-best list: (text, tokens, token ids, hypothesis), as ESPnet returns it.
NBest = List[Tuple[Optional[str], List[str], List[int], Any]]

_building = threading.Lock()


@contextlib.contextmanager
def task_class(task: type) -> Iterator[None]:
    """Let ESPnet's inference, which names ASRTask, build models with another class."""
    with _building, mock.patch.object(asr_inference, "ASRTask", task):
        yield


class Speech2Text(asr_inference.Speech2Text):
    """ESPnet's ``Speech2Text`` for adapted models.

    Args:
        asr_train_config: Saved configuration of the adaptation.
        asr_model_file: Its checkpoint.
        task: The task to begin with; see :meth:`set_task`.
        ctc_greedy: Take the best CTC symbol of each frame instead of a beam search:
            fast, batched, without a decoder or language model.
        pretrained_model: Where the frozen base is, if not where the configuration says.
        **kwargs: As for ESPnet's ``Speech2Text``.

    Examples:
        >>> speech2text = Speech2Text("config.yaml", "valid.cer_ctc.ave.pth", task="a")
        >>> text, *_ = speech2text(waveform)[0]

    Raises:
        BaseModelError: The checkpoint or its base is incomplete or another.
        TaskError: The task is unknown.
    """

    def __init__(
        self,
        asr_train_config: Union[Path, str, None] = None,
        asr_model_file: Union[Path, str, None] = None,
        *args: Any,
        task: Union[None, str, Sequence[str]] = None,
        ctc_greedy: bool = False,
        pretrained_model: Optional[str] = None,
        **kwargs: Any,
    ):
        built_by = type("HRATask", (HRATask,), {"base_override": pretrained_model})
        if ctc_greedy:
            # The beam is not used; the smallest keeps ESPnet's constructor content.
            kwargs = {**kwargs, "beam_size": 1}
        with task_class(built_by):
            super().__init__(asr_train_config, asr_model_file, *args, **kwargs)
        self.ctc_greedy = ctc_greedy
        if task is not None:
            self.set_task(task)

    @classmethod
    def from_pretrained(
        cls, model_tag: Optional[str] = None, **kwargs: Any
    ) -> "Speech2Text":
        """Build from an experiment folder, a pack, or a tag of the model zoo.

        Args:
            model_tag: Folder, zip or tag; None if the files are in `kwargs`.
            **kwargs: As for the constructor, `task` above all.
        """
        if model_tag is not None:
            found = open_base(str(model_tag))
            kwargs = {
                "asr_train_config": found.config_file,
                "asr_model_file": found.model_file,
                **{k: v for k, v in kwargs.items() if v is not None},
            }
        return cls(**kwargs)

    # --------------------------------------------------------------------- tasks

    @property
    def tasks(self) -> Tuple[str, ...]:
        """Names of the tasks; empty if the model has no adapter."""
        return getattr(self.asr_model.encoder, "tasks", ())

    def set_task(self, task: Union[None, str, Sequence[str]]) -> None:
        """Choose the task; see ``encoder.set_task``.

        Raises:
            TaskError: The task is unknown.
        """
        if not hasattr(self.asr_model.encoder, "set_task"):
            raise TaskError(f"task {task!r}: this model has no adapter and no tasks")
        self.asr_model.encoder.set_task(task)

    # ------------------------------------------------------------------ decoding

    @torch.no_grad()
    def __call__(
        self, speech: Union[Wave, Sequence[Wave]], utt2task: Optional[Wave] = None
    ) -> Any:
        """Decode one utterance, or a list of them as one batch.

        Args:
            speech: Samples, shape (samples,), or a list of such.
            utt2task: The utterance's task as the data loader gives it; otherwise the
                task that was set.

        Returns:
            An n-best list of (text, tokens, token ids, hypothesis), or a list of them.
        """
        if isinstance(speech, (list, tuple)):
            return self.batch_decode(speech)
        if utt2task is not None:
            utt2task = torch.as_tensor(utt2task)[None]
        with self._tasks_of(utt2task, None):
            if self.ctc_greedy:
                return self.batch_decode([speech])[0]
            return super().__call__(speech)

    @torch.no_grad()
    def batch_decode(
        self,
        speech: Union[Wave, Sequence[Wave]],
        speech_lengths: Union[Wave, Sequence[int], None] = None,
        utt2task: Optional[torch.Tensor] = None,
        utt2task_lengths: Optional[torch.Tensor] = None,
    ) -> List[NBest]:
        """Decode a batch; every utterance keeps its task.

        ESPnet's own sorts by length and halves a batch that runs out of memory, and
        knows nothing of tasks. Here the encoder runs first, in the given order and with
        each utterance's task; the search works on what it returns.

        Args:
            speech: List of utterances, or padded, (utterances, samples).
            speech_lengths: Number of samples of each, for padded speech.
            utt2task: Task names as the data loader gives them, padded.
            utt2task_lengths: Their lengths.

        Returns:
            One n-best list per utterance, in the given order.
        """
        if isinstance(speech, (list, tuple)):
            waves = [torch.as_tensor(wave).reshape(-1) for wave in speech]
        elif speech_lengths is None:
            raise ValueError("speech_lengths is required for a padded speech array")
        else:
            lengths = torch.as_tensor(speech_lengths).tolist()
            waves = [torch.as_tensor(w)[:n] for w, n in zip(speech, lengths)]
        with self._tasks_of(utt2task, utt2task_lengths):
            choice = self._choice()
            if self.ctc_greedy:
                return self._split_if_too_large(self._greedy, waves, choice)
            if choice is None or isinstance(choice, str):
                return super().batch_decode(waves)  # one task: nothing to mix up
            return self._split_if_too_large(self._search, waves, choice)

    def _tasks_of(
        self, names: Optional[torch.Tensor], lengths: Optional[torch.Tensor]
    ) -> contextlib.AbstractContextManager:
        if names is not None and lengths is None:
            lengths = torch.full([names.size(0)], names.size(1))
        return self.asr_model.tasks_of(names, lengths)

    def _choice(self) -> Union[None, str, Tuple[str, ...]]:
        return getattr(self.asr_model.encoder, "chosen_task", None)

    def _split_if_too_large(
        self,
        decode: Any,
        waves: List[torch.Tensor],
        choice: Union[None, str, Tuple[str, ...]],
    ) -> List[NBest]:
        """Decode a batch, in halves if memory runs out; tasks go with utterances."""
        listed = isinstance(choice, tuple)
        if listed and len(choice) != len(waves):
            raise TaskError(
                f"{len(choice)} tasks were chosen for a batch of {len(waves)} "
                "utterances: give one name for all, or one per utterance"
            )
        try:
            if not listed:
                return decode(waves)
            with self.asr_model.encoder.use_task(choice):
                return decode(waves)
        except Exception as e:  # noqa: BLE001 - only running out of memory is handled
            if not is_out_of_memory_error(e) or len(waves) == 1:
                raise
        half = (len(waves) + 1) // 2
        return [
            result
            for part in (slice(None, half), slice(half, None))
            for result in self._split_if_too_large(
                decode, waves[part], choice[part] if listed else choice
            )
        ]

    def _encode(self, waves: List[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
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

    def _search(self, waves: List[torch.Tensor]) -> List[NBest]:
        """ESPnet's beam search over a batch."""
        encoded, frames = self._encode(waves)
        if not self._can_batch_decode():
            return [self._decode_single_sample(x[:n]) for x, n in zip(encoded, frames)]
        found = self.beam_search(
            x=encoded,
            x_lengths=frames,
            maxlenratio=self.maxlenratio,
            minlenratio=self.minlenratio,
        )
        return [self._hyps_to_results(hypotheses) for hypotheses in found]

    def _greedy(self, waves: List[torch.Tensor]) -> List[NBest]:
        """The best CTC symbol of each frame, repeats and blanks removed."""
        encoded, frames = self._encode(waves)
        scores, symbols = self.asr_model.ctc.log_softmax(encoded).max(dim=-1)  # [b, t]
        results: List[NBest] = []
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


def inference(args: argparse.Namespace, extra: Dict[str, Any]) -> None:
    """Run ESPnet's decoding loop with this module's ``Speech2Text``.

    Args:
        args: Options of ``espnet2.bin.asr_inference``.
        extra: Further arguments of :class:`Speech2Text`.
    """

    class Configured(Speech2Text):
        @classmethod
        def from_pretrained(cls, model_tag: Optional[str] = None, **kwargs: Any):
            return super().from_pretrained(model_tag, **{**kwargs, **extra})

    options = {k: v for k, v in vars(args).items() if k != "config"}
    with mock.patch.object(asr_inference, "Speech2Text", Configured):
        with mock.patch.object(asr_inference, "ASRTask", HRATask):
            asr_inference.inference(**options)
