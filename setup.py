"""Puts the recipe into the package, for `espnet-hra recipe`; all else is in setup.cfg.

The recipe's folder has links, and lies outside of the package: package data can do
neither.
"""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithRecipe(build_py):
    """Also copies the recipe, except where the package is used from the checkout."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            sys.path.insert(0, str(HERE))
            from espnet_hra.commands.recipe import collect
            from espnet_hra.files.shipped import NAME

            target = Path(self.build_lib) / "espnet_hra" / "egs2" / NAME
            shutil.rmtree(target, ignore_errors=True)
            collect(HERE / "egs2" / NAME, target)


setup(cmdclass={"build_py": BuildWithRecipe})
