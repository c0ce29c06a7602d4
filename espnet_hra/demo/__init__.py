"""`espnet-hra demo MODEL`: a page in the browser to hear, compare and teach tasks.

* :mod:`~espnet_hra.demo.command` has the options, and starts the page on this machine;
* :mod:`~espnet_hra.demo.page` is the page, written with Gradio;
* :mod:`~espnet_hra.demo.serving` serves it, and :mod:`~espnet_hra.demo.privacy` refuses
  whoever is not of this machine;
* :mod:`~espnet_hra.demo.listening` opens the model and reads recordings with its tasks;
* :mod:`~espnet_hra.demo.showing` writes what the page shows: texts with their
  differences marked, rates, tables;
* :mod:`~espnet_hra.demo.sentences` are those that a person reads aloud;
* :mod:`~espnet_hra.demo.lesson` keeps the recordings, and splits them into what is
  learned and what is held out;
* :mod:`~espnet_hra.demo.teaching` runs `espnet-hra tasks add` on them and says how far
  it is, and :mod:`~espnet_hra.demo.learned` measures what it has brought.

Nothing leaves the machine, and nothing is kept but the tasks that were taught (and the
recordings, where ``--recordings`` names a folder for them).
"""

from collections.abc import Sequence

__all__: list[str] = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, see :func:`espnet_hra.demo.command.main`."""
    from espnet_hra.demo import command

    return command.main(argv)
