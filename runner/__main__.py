"""`python -m runner VERB …`: project files, training and workers from a shell.

Exit status: 0 well, 1 failed, 2 the command or the project is wrong, 130 stopped by Ctrl-C, 141 nobody reads on.
A verb's module is loaded only when it is asked for, so that `check` needs neither Redis' client nor a terminal library.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from runner.errors import QLoRAError, ResumeMismatchError, SpecError, UsageError
from runner.redaction import redact
from runner.settings import keep_files_private

VERBS = {
    "check": "say whether a project is valid, and everything that is wrong with it",
    "plan": "say what a run would take on this host, and whether it fits",
    "train": "run a project here and now, without Redis and Slack",
    "replay": "start the run again that an adapter came from",
    "merge": "merge an adapter into its base model's 16-bit weights",
    "push": "upload an adapter or a merged model to a model hub",
    "worker": "take jobs from the queue and run them on this host",
    "hosts": "list the live workers with devices, room, state and what keeps them from jobs",
    "jobs": "list the latest jobs",
    "job": "say where one job stands",
    "logs": "show the end of what a job has printed, on its host",
    "stop": "end a running job with a checkpoint, or take a queued one out",
    "retry": "queue a job again that is over, with other settings or from its checkpoint",
    "limits": "show or set how many jobs may run and wait in a pool",
    "freeze": "let nothing new start in any pool; running jobs go on",
    "unfreeze": "let jobs start again",
    "drain": "let nothing new start on one host",
    "undrain": "let a host take jobs again",
    "metrics": "answer Prometheus' scrapes about all jobs",
    "versions": "compare the installed libraries with the tested ones",
    "schema": "print the JSON schema of a project file, or of datasets.toml",
    "redis": "run the embedded Valkey, for a machine without Redis",
    "demo-model": "build the demo's tiny base model",
}
"""Every verb with its line of help; `runner.cli` holds a module of the same name for each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and turn errors into a message, a hint and an exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except QLoRAError as error:
        print(describe_error(error), file=sys.stderr)
        return 2 if isinstance(error, UsageError | SpecError | ResumeMismatchError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `… | head -1` has seen enough. What is still buffered must not fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help"}:
        print(usage())
        return 0 if words else 2
    verb = words[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "`python -m runner --help` lists them."
        raise UsageError(f"There is no verb {verb!r}.", hint=hint)
    keep_files_private()
    module = importlib.import_module(f"runner.cli.{verb.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"python -m runner {verb}", description=f"{verb}: {VERBS[verb]}.")
    module.add_arguments(parser)
    # Intermixed, because people write `train demo --json lora.r=8` as often as the other way round.
    return int(module.run(parser.parse_intermixed_args(words[1:])))


def describe_error(error: QLoRAError) -> str:
    """An error for a terminal: message, every problem, hint; without secrets."""
    lines = [error.message]
    if isinstance(error, SpecError):
        lines += [f"  {problem}" for problem in error.problems]
    if error.hint:
        lines.append(error.hint)
    return redact("\n".join(lines))


def usage() -> str:
    """The help of `python -m runner` itself."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {help_line}" for verb, help_line in VERBS.items())
    return f"usage: python -m runner VERB …\n\n{verbs}\n\n`python -m runner VERB --help` tells more."


if __name__ == "__main__":
    sys.exit(main())
