"""Everything that is not Slack: project files, the job store, the queue, the worker and (below it) training.

The top level of this package never imports torch; `runner.training` alone does.
"""
