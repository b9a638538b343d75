"""Loading and training: a plain library that needs neither Redis nor Slack. Torch lives here and only here."""

from runner.training.noise import silence_loggers

silence_loggers()
