"""The verbs of `python -m runner`, one short file each: `add_arguments(parser)` and `run(arguments) -> exit status`."""
