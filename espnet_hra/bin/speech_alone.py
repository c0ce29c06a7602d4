"""What stands for the ESPnet task in a decoding loop of ESPnet's.

Tasks of utterances where the loop takes recordings alone, and what it is decoding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from espnet_hra.espnet.decoding import Decoding
from espnet_hra.espnet.inputs import batch_names
from espnet_hra.espnet.model import DATA_NAME


class Told:
    """Stands for the ESPnet task in the loop: knows what is being decoded.

    Args:
        task: Our counterpart of it.

    Attributes:
        keys: Names of the utterances that the loop has got last.
    """

    def __init__(self, task: Any):
        self._task = task
        self.keys: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def build_streaming_iterator(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As the task's."""
        for keys, batch in self._task.build_streaming_iterator(*args, **kwargs):
            self.keys = keys
            yield keys, batch


class SpeechAlone:
    """Stands for the ESPnet task in the loop: sets each utterance's task before it.

    Args:
        task: Our counterpart of it.
        opened: Gives what decodes, which the loop has opened by then.
    """

    def __init__(self, task: Any, opened: Callable[[], Decoding]):
        self._task, self._opened = task, opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def build_streaming_iterator(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As the task's, without the stream of tasks."""
        loader = self._task.build_streaming_iterator(*args, **kwargs)
        for keys, batch in loader:
            names = batch_names(
                batch.pop(DATA_NAME, None), batch.pop(f"{DATA_NAME}_lengths", None)
            )
            if names is not None:
                self._opened().set_task(names[0])  # the loop has no larger batches
            yield keys, batch
