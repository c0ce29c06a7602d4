"""Memory of one variant, measured in a fresh process that holds nothing else.

On a CPU it is what the kernel counts: the largest resident set while a step runs
(``VmHWM``, set back before it), less the resident set before anything was built. It so
includes weights, gradients, states of the optimizer, activations, and what torch's
kernels need for themselves. Two things are taken care of, lest numbers depend on what
ran before: large blocks are given back to the kernel when they are freed, and building
and the first steps do not count. On a GPU it is torch's ``max_memory_allocated``.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from espnet_hra.bench.backbones import Backbone
from espnet_hra.bench.variants import Subject, Variant, import_peft
from espnet_hra.errors import UserError
from espnet_hra.files.machine import available_memory

MIB = 2**20

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

# Of glibc's malloc.h.
_MMAP_THRESHOLD = -3


class MeasureError(UserError, RuntimeError):
    """Memory cannot be measured on this system."""


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, in which nothing was computed yet.

    Processes are forked from a server that has imported what they need and done
    nothing else: importing once is enough, and no thread is forked.
    """
    context = multiprocessing.get_context("forkserver")
    # What cannot be imported (PEFT need not be there) is passed over.
    context.set_forkserver_preload([__name__, "espnet2.tasks.asr", "peft"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        return pool.submit(function, *arguments).result()


def peak(
    backbone: Backbone,
    variant: Variant,
    work: str,
    batch: int,
    seconds: float,
    device: str,
    threads: int,
) -> tuple[float, int, float]:
    """The peak of a variant. In :func:`fresh`.

    Args:
        backbone: What it stands on.
        variant: The variant.
        work: Method of :class:`Subject` to run.
        batch: Number of utterances.
        seconds: Of speech, in each.
        device: What computes.
        threads: Of the processor.

    Returns:
        MiB, the parameters of a task, and the arithmetic ratio of the subject.
    """
    torch.set_num_threads(threads)
    import_peft()  # its modules are no memory of the variant
    _give_back()
    before = resident()
    stock = backbone.build().to(device)
    subject = Subject(variant, backbone, stock, batch, seconds)
    del stock
    for _ in range(2):  # states of the optimizer, buffers of the kernels
        getattr(subject, work)()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        getattr(subject, work)()
        used = torch.cuda.max_memory_allocated()
    else:
        _give_back()
        reset_peak()
        getattr(subject, work)()
        used = resident("VmHWM") - before
    return used / MIB, subject.task_params, subject.arithmetic


def heads(
    backbone: Backbone, variant: Variant, device: str, threads: int
) -> tuple[float, float, int]:
    """What registering tasks adds to the memory of a process. In :func:`fresh`.

    Args:
        backbone: What they stand on.
        variant: Says which head, and how many tasks.
        device: Where they are.
        threads: Of the processor.

    Returns:
        MiB, the MiB of the tasks' own values, and the parameters of a task.
    """
    torch.set_num_threads(threads)
    _give_back()
    stock = backbone.build().to(device)
    one = Variant(variant.name, variant.method, conf=variant.conf)
    subject = Subject(one, backbone, stock, 1, 1.0)
    _give_back()  # lest what building has freed is filled first
    on_gpu = torch.device(device).type == "cuda"
    size = torch.cuda.memory_allocated if on_gpu else resident
    before = size()
    for i in range(variant.tasks):
        subject.encoder.add_task(f"another{i}")
    gc.collect()
    own = variant.tasks * subject.task_params * 4
    return (size() - before) / MIB, own / MIB, subject.task_params


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory: now, or ``VmHWM``, the most so far.

    Raises:
        MeasureError: The system does not say.
    """
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise MeasureError(
            f"{_STATUS} does not say how much memory is used ({field}): leave the "
            "cases on memory out (--cases)"
        )
    return 1024 * int(found[1])


def reset_peak() -> None:
    """Let ``VmHWM`` begin anew.

    Raises:
        MeasureError: The system does not allow it.
    """
    try:
        _CLEAR.write_text("5")
    except OSError as e:
        raise MeasureError(
            f"the peak of memory cannot be set back ({e}): leave the cases on memory "
            "out (--cases)"
        ) from e


def _give_back() -> None:
    """Give what is free back to the kernel, now, and large blocks from now on."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 128 * 1024)
        library.malloc_trim(0)


def available(device: torch.device) -> int:
    """Bytes that can still be taken."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return available_memory()
