"""Lets processes of `runner.training` know the stubborn model classes: what a team's own plugin would do.

Python imports a module of this name at start; tests put this folder and the one above on PYTHONPATH.
"""

import sys

if any(argument.startswith("runner.training") for argument in sys.orig_argv):
    import stubborn_models  # type: ignore[import-not-found]  # PYTHONPATH finds it

    stubborn_models.register()
