"""Whether a Whisper fits into memory, told before it is fetched, read or built."""

from espnet_hra.errors import BaseModelError
from espnet_hra.files.machine import available_memory
from espnet_hra.whisper.sizes import NAMED, Sizes


def check(source: str, sizes: Sizes) -> None:
    """Refuse a model that does not fit into memory.

    Args:
        source: How messages name it.
        sizes: Its sizes.

    Raises:
        BaseModelError: It does not; the message has the sizes that do.
    """
    free, needed = available_memory(), _bytes(sizes)
    if not free or needed < free:
        return
    fitting = [
        name
        for name, other in NAMED.items()
        if other.multilingual == sizes.multilingual
        and _bytes(other) < min(free, needed)
    ]
    what = (
        f"{source}: takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} "
        "GB are free"
    )
    if not fitting:
        raise BaseModelError(
            f"{what}, too little for any Whisper of OpenAI's: end what else takes "
            "memory, or take a machine with more"
        )
    raise BaseModelError(
        f"{what}: take a smaller one that fits ({', '.join(fitting)}), or a machine "
        "with more"
    )


def _bytes(sizes: Sizes) -> int:
    """The model in float32, and once more while it is loaded."""
    return 8 * sizes.parameters
