"""Where the recipe is that comes with this package."""

from pathlib import Path

from espnet_hra.errors import UserError

#: The folder of the recipe.
NAME = "hra_asr"


class RecipeError(UserError, RuntimeError):
    """The recipe cannot be copied."""


def find_recipe() -> Path:
    """The folder of the recipe, in the package or in the checkout around it.

    Raises:
        RecipeError: It is in neither.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "egs2" / NAME, package.parent / "egs2" / NAME):
        if (folder / "hra.sh").is_file() and (folder / "local").is_dir():
            return folder
    raise RecipeError(
        f"the recipe is not part of this installation ({package}): install a wheel "
        "(pip install espnet-hra), or copy egs2/hra_asr from a checkout of the "
        "repository with cp -rL"
    )
