"""`python -m bot.workspace`: serve a local workspace, or talk to the one that serves on this machine."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bot.workspace.client import ADDRESS_FILE, WorkspaceClient
from bot.workspace.records import Answer, Message
from runner.errors import QLoRAError, UsageError
from runner.settings import keep_files_private, load_settings

FAILURES = {
    "dispatch_failed": "No bot is connected to the workspace. Start it with `python -m bot`.",
    "operation_timeout": "The bot did not acknowledge within Slack's 3 seconds. Its log says why.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 1 when it could not be done.
    """
    options = _parser().parse_args(arguments)
    state_dir = load_settings().state_dir
    try:
        keep_files_private()
        if options.do is None:
            return _serve(state_dir, options.port)
        client = WorkspaceClient.discover(state_dir, patience_s=options.patience)
        code: int = options.do(client, options)
    except QLoRAError as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bot.workspace", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port to serve on, default a free one")
    parser.set_defaults(do=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="talking to the workspace that serves here")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--channel", default="qlora", help="default qlora")
    shared.add_argument("--user", default="you", help="who does it, default you")
    shared.add_argument("--wait", type=float, default=10.0, metavar="S", help="longest wait for an answer, in seconds")
    shared.add_argument("--patience", type=float, default=3.0, metavar="S", help="longest wait for the workspace")

    say = commands.add_parser(
        "say", parents=[shared], help="type a slash command or a message; @qlora mentions the bot"
    )
    say.add_argument("line", metavar="TEXT")
    say.add_argument("--thread", metavar="JOB", help="write the message in this job's thread")
    say.set_defaults(do=_say)

    click = commands.add_parser("click", parents=[shared], help="click a button in a job's thread")
    click.add_argument("job", metavar="JOB")
    click.add_argument("button", metavar="LABEL", help="its label or action id")
    click.set_defaults(do=_click)

    thread = commands.add_parser("thread", parents=[shared], help="print a job's thread")
    thread.add_argument("job", metavar="JOB")
    thread.add_argument("--follow", action="store_true", help="keep printing until Ctrl-C")
    thread.set_defaults(do=_thread)

    channel = commands.add_parser("channel", parents=[shared], help="print the top-level messages")
    channel.set_defaults(do=_channel)
    return parser


def _serve(state_dir: Path, port: int) -> int:
    # Only the serving process needs aiohttp.
    from bot.workspace.server import LocalWorkspace  # noqa: PLC0415

    path = state_dir / ADDRESS_FILE
    workspace = LocalWorkspace(state_dir=state_dir, port=port)
    workspace.run(path, lambda url: print(f"Local workspace at {url} (tokens in {path}). Ctrl-C ends it.", flush=True))
    return 0


def _say(client: WorkspaceClient, options: argparse.Namespace) -> int:
    place = {"user": options.user, "channel": options.channel}
    if options.line.startswith("/"):
        if options.thread:
            raise UsageError("Slack knows no slash commands inside threads.", hint="Mention @qlora instead.")
        return _show(client, client.command(options.line, **place, wait_s=options.wait))
    bot = client.status()["bot_user"]
    typed = options.line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"@qlora\b", f"<@{bot}>", typed)
    root = _root(client, options.thread, options.channel).ts if options.thread else None
    message = client.post(text, **place, thread_ts=root)
    if text == typed:
        return 0
    changes = client.changes(
        message.changed_seq,
        channel=options.channel,
        viewer=options.user,
        thread_ts=message.thread_ts or message.ts,
        timeout_s=options.wait,
    )
    return _show(client, Answer(acknowledged=True, messages=changes.messages))


def _click(client: WorkspaceClient, options: argparse.Namespace) -> int:
    root = _root(client, options.job, options.channel)
    thread = client.messages(channel=options.channel, thread_ts=root.ts, viewer=options.user)
    problems = []
    for message in thread:
        try:
            answer = client.click(
                message.ts, options.button, user=options.user, channel=options.channel, wait_s=options.wait
            )
        except UsageError as error:
            problems.append(error)
        else:
            return _show(client, answer)
    raise problems[0]


def _thread(client: WorkspaceClient, options: argparse.Namespace) -> int:
    from bot.workspace.terminal import ThreadPrinter  # noqa: PLC0415 - rich is needed only to print

    root = _root(client, options.job, options.channel)
    printer = ThreadPrinter(names=_names(client))
    place = {"channel": options.channel, "thread_ts": root.ts, "viewer": options.user}
    # Asked for first: what changes in between comes twice, and the printer drops it, rather than never.
    cursor = client.status()["cursor"]
    for message in client.messages(**place):
        print(printer.render(message), flush=True)
    while options.follow:
        changes = client.changes(cursor, **place, timeout_s=30.0)
        cursor = changes.cursor
        for message in changes.messages:
            text = printer.render(message)
            if text is not None:
                print(text, flush=True)
    return 0


def _channel(client: WorkspaceClient, options: argparse.Namespace) -> int:
    messages = client.messages(channel=options.channel, viewer=options.user)
    return _show(client, Answer(acknowledged=True, messages=tuple(m for m in messages if m.is_root or m.broadcast)))


def _show(client: WorkspaceClient, answer: Answer) -> int:
    from bot.workspace.terminal import render_message  # noqa: PLC0415 - rich is needed only to print

    if answer.error is not None:
        print(FAILURES.get(answer.error, f"Slack refused the bot's answer: {answer.error}."), file=sys.stderr)
        return 1
    names = _names(client)
    for message in answer.messages:
        print(render_message(message, names=names))
    if not answer.messages:
        print("Nothing to show.", file=sys.stderr)
    return 0


def _root(client: WorkspaceClient, job: str, channel: str) -> Message:
    root = client.find_thread(job, channel=channel)
    if root is None:
        raise UsageError(f"No thread in #{channel} belongs to job {job!r}.", hint="`channel` lists what there is.")
    return root


def _names(client: WorkspaceClient) -> dict[str, str]:
    return {user["id"]: user["name"] for user in client.status()["users"]}


if __name__ == "__main__":
    sys.exit(main())
