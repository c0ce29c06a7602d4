"""`espnet-hra adapt`: thousands of new tasks, each with a training of its own, on Dask.

* :mod:`~espnet_hra.adapt.command` has the options, and calls the others in turn;
* :mod:`~espnet_hra.adapt.plan` turns a data folder into jobs, and knows which are done;
* :mod:`~espnet_hra.adapt.folder` makes the model's folder, and what all jobs share;
* :mod:`~espnet_hra.adapt.cluster` starts workers as ESPnet3's ``parallel`` block says,
  and :mod:`~espnet_hra.adapt.signals` ends them;
* :mod:`~espnet_hra.adapt.run` hands the jobs to them, and says how far it is;
* :mod:`~espnet_hra.adapt.worker` is what a worker does: one task after the other on one
  base that it loads once, with ESPnet's :mod:`~espnet_hra.adapt.training`;
* :mod:`~espnet_hra.adapt.table` writes down what has come of it.

:mod:`~espnet_hra.adapt.single` is `espnet-hra tasks add`, one task without Dask; what
both do to a task's data and head is :mod:`~espnet_hra.adapt.new_task`.

The head of a task depends on configuration, data and controller alone: whoever trains
it, and beside whatever others, it has the same bits.
"""

from collections.abc import Sequence

__all__: list[str] = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, see :func:`espnet_hra.adapt.command.main`."""
    from espnet_hra.adapt import command

    return command.main(argv)
