"""The one seam where ESPnet offers no hook.

Some programs of ESPnet do inline what others must be able to do otherwise: they call
functions and classes by the names of their own module (``ASRTask``,
``average_nbest_models``, ``torch.save``), or of their class (``cls.build_model``).
Within a block of :func:`standing_in` such a name stands for something of ours.

It is the last resort. Registries, methods of subclasses, hooks of torch, and options
come first, and only this package's training and decoding programs come here. The names
are the process's, not the thread's: one block at a time holds a name, and others that
want the same one wait.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_held: dict[tuple[Any, str], "threading.RLock"] = {}


@contextlib.contextmanager
def standing_in(holder: Any, *lacking: str, **others: Any) -> Iterator[None]:
    """A block in which names of a module or class stand for other things.

    Args:
        holder: Module of ESPnet, torch or openai-whisper, or an ESPnet task.
        *lacking: Names that it may lack: an older version had them.
        **others: What stands for what, by name.

    Raises:
        AttributeError: It has no such name (it is another version).
    """
    with contextlib.ExitStack() as stack:
        for name, other in sorted(others.items()):  # one order: no two wait in a ring
            lock = _held.setdefault((holder, name), threading.RLock())
            stack.enter_context(lock)
            if name not in lacking:
                getattr(holder, name)
            if name in vars(holder):  # as it is written there, e.g. a classmethod
                stack.callback(setattr, holder, name, vars(holder)[name])
            else:
                stack.callback(delattr, holder, name)
            setattr(holder, name, other)
        yield
