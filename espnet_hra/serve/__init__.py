"""`espnet-hra serve`: a model and its tasks behind OpenAI's interface.

* :mod:`~espnet_hra.serve.command` has the options, and runs the server until it is told
  to stop;
* :mod:`~espnet_hra.serve.app` is the interface: paths, and what they answer, with
  :mod:`~espnet_hra.serve.formats` for texts, :mod:`~espnet_hra.serve.problems` for
  refusals, :mod:`~espnet_hra.serve.managing` for tasks that come and go,
  :mod:`~espnet_hra.serve.door` for what is refused before it is read, and
  :mod:`~espnet_hra.serve.metrics`;
* :mod:`~espnet_hra.serve.transcribing` is what becomes of a request: it is read by
  :mod:`~espnet_hra.serve.intake`, cut by :mod:`~espnet_hra.serve.cutting`, and its task
  may be chosen by :mod:`~espnet_hra.serve.auto`;
* :mod:`~espnet_hra.serve.batcher` makes mixed batches of the pieces of all requests;
* :mod:`~espnet_hra.serve.engine` decodes a batch, such that no text depends on what
  else is in it; :mod:`~espnet_hra.serve.lengths` says what may be together.

FastAPI and what belongs to it are imported where they are used (extra ``serve``).
"""

from collections.abc import Sequence

__all__: list[str] = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, see :func:`espnet_hra.serve.command.main`."""
    from espnet_hra.serve import command

    return command.main(argv)
