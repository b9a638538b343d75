"""Steers a local workspace from any process: as its people, and as a test that injects faults and reads the log."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from bot.workspace.faults import DisconnectKind, Fault, FaultKind
from bot.workspace.records import Answer, Call, Changes, Channel, Message, User
from runner.errors import UnavailableError, UsageError

ADDRESS_FILE = "workspace.json"
POLL_S = 0.1


class WorkspaceClient:
    """Caller of the control API; holds no connection between calls, safe to share between threads.

    Args:
        url: Address of the control API, ending in a slash.
        token: Its token.
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path
        self._token = token

    @classmethod
    def discover(cls, state_dir: Path, *, patience_s: float = 30.0) -> Self:
        """The workspace that serves on this machine, by `<state_dir>/workspace.json`.

        Args:
            state_dir: The state folder.
            patience_s: How long to wait until it is there and answers.

        Raises:
            UnavailableError: It is not there in time.
        """
        path = state_dir / ADDRESS_FILE
        deadline = time.monotonic() + patience_s
        while True:
            try:
                address = json.loads(path.read_text())
                client = cls(address["control_url"], address["control_token"])
                client.status()
            except (FileNotFoundError, UnavailableError):
                if time.monotonic() >= deadline:
                    raise UnavailableError(
                        f"No local workspace serves here (looked in {path}).",
                        hint="Start everything with `make run`, or the workspace alone with `python -m bot.workspace`.",
                    ) from None
                time.sleep(POLL_S)
            else:
                return client

    # --- as a person -----------------------------------------------------------------------------------------------

    def command(self, line: str, *, user: str = "you", channel: str = "qlora", wait_s: float = 10.0) -> Answer:
        """Type a slash command and wait for its first answer, at most `wait_s` seconds after the acknowledgement."""
        body = {"line": line, "user": user, "channel": channel, "wait_s": wait_s}
        return Answer.model_validate(self._ask("POST", "command", body, wait_s=wait_s))

    def click(self, ts: str, action: str, *, user: str = "you", channel: str = "qlora", wait_s: float = 10.0) -> Answer:
        """Click the button of a message, named by its action id or its label, and wait for a consequence."""
        body = {"ts": ts, "action": action, "user": user, "channel": channel, "wait_s": wait_s}
        return Answer.model_validate(self._ask("POST", "click", body, wait_s=wait_s))

    def post(self, text: str, *, user: str = "you", channel: str = "qlora", thread_ts: str | None = None) -> Message:
        """Write a message. `text` is raw: mention the bot as `<@id>`, escape `& < >`."""
        body = {"text": text, "user": user, "channel": channel, "thread_ts": thread_ts}
        return Message.model_validate(self._ask("POST", "message", body))

    def messages(
        self, *, channel: str = "qlora", thread_ts: str | None = None, viewer: str = "you"
    ) -> tuple[Message, ...]:
        """What `viewer` sees in a channel or one of its threads, ephemeral messages included, oldest first."""
        query = _query(channel=channel, thread_ts=thread_ts, viewer=viewer)
        return Changes.model_validate(self._ask("GET", f"messages?{query}")).messages

    def changes(
        self,
        after: int = 0,
        *,
        channel: str = "qlora",
        thread_ts: str | None = None,
        viewer: str = "you",
        timeout_s: float = 0.0,
    ) -> Changes:
        """Messages posted, edited or deleted since the cursor `after`, waiting up to `timeout_s` for the first.

        Several edits of one message between two calls show as its latest state.
        """
        query = _query(after=after, channel=channel, thread_ts=thread_ts, viewer=viewer, timeout_s=timeout_s)
        return Changes.model_validate(self._ask("GET", f"changes?{query}", wait_s=timeout_s))

    def wait_for(
        self,
        wanted: Callable[[Message], bool],
        *,
        channel: str = "qlora",
        thread_ts: str | None = None,
        viewer: str = "you",
        timeout_s: float = 30.0,
    ) -> Message:
        """The first message, old or new, that is `wanted`.

        Raises:
            TimeoutError: None came in time.
        """
        deadline = time.monotonic() + timeout_s
        cursor = 0
        while True:
            left = deadline - time.monotonic()
            changes = self.changes(
                cursor, channel=channel, thread_ts=thread_ts, viewer=viewer, timeout_s=max(0.0, min(left, 5.0))
            )
            for message in changes.messages:
                if not message.deleted and wanted(message):
                    return message
            cursor = changes.cursor
            if left <= 0:
                raise TimeoutError(f"No message as wanted in #{channel} within {timeout_s:g} s.")

    def find_thread(self, job_id: str, *, channel: str = "qlora") -> Message | None:
        """The top-level message whose metadata names the job, else whose text does."""
        roots = [message for message in self.messages(channel=channel) if message.is_root and not message.visible_to]
        named = [message for message in roots if message.job_id == job_id]
        mentioned = [message for message in roots if job_id in message.text]
        return next(iter(named or mentioned), None)

    # --- the place -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Connections (of the bot), cursor, bot_user, users, channels."""
        return self._ask("GET", "status")

    def wait_connected(self, connections: int = 1, *, timeout_s: float = 30.0) -> None:
        """Until the bot holds that many connections.

        Raises:
            TimeoutError: It did not in time.
        """
        deadline = time.monotonic() + timeout_s
        while self.status()["connections"] < connections:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"The bot has not opened {connections} connection(s) within {timeout_s:g} s.")
            time.sleep(POLL_S / 4)

    def add_user(self, name: str) -> User:
        """Let somebody join the workspace and #qlora."""
        return User.model_validate(self._ask("POST", "user", {"name": name}))

    def add_channel(self, name: str, members: Sequence[str]) -> Channel:
        """Open a channel; the bot (`qlora`) is in it only if it is among the members."""
        return Channel.model_validate(self._ask("POST", "channel", {"name": name, "members": list(members)}))

    def file(self, file_id: str) -> bytes:
        """The bytes of an upload."""
        return self._send("GET", f"file?{_query(id=file_id)}", None, wait_s=0)

    # --- faults and the log ----------------------------------------------------------------------------------------

    def calls(self, method: str | None = None, *, after: int = 0) -> tuple[Call, ...]:
        """Web API calls so far, in order of arrival; uses of a response URL count as method `response_url`."""
        answer = self._ask("GET", f"calls?{_query(method=method, after=after)}")
        return tuple(Call.model_validate(call) for call in answer["calls"])

    def inject(self, kind: FaultKind, method: str = "*", **settings: Any) -> None:
        """Let the next calls of a method meet a fault; settings as in `bot.workspace.faults.Fault`."""
        self._ask("POST", "fault", Fault(kind=kind, method=method, **settings).model_dump())

    def refuse_block(self, block_type: str) -> None:
        """Answer `invalid_blocks` to every message with a block of that type."""
        self._ask("POST", "refuse_block", {"block_type": block_type})

    def clear_faults(self) -> None:
        """From now on nothing goes wrong."""
        self._ask("DELETE", "faults")

    def set_rate_limits(self, enabled: bool) -> None:
        """Switch Slack's rate limits on or off."""
        self._ask("POST", "rate_limits", {"enabled": enabled})

    def disconnect(self, kind: DisconnectKind = "refresh") -> int:
        """End the bot's connections (`refresh`, `warning`, `close`, `reset`) and say how many there were."""
        return int(self._ask("POST", "disconnect", {"kind": kind})["ended"])

    # --- HTTP ------------------------------------------------------------------------------------------------------

    def _ask(self, verb: str, path: str, body: dict[str, Any] | None = None, *, wait_s: float = 0.0) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._send(verb, path, body, wait_s=wait_s))
        return answer

    def _send(self, verb: str, path: str, body: dict[str, Any] | None, *, wait_s: float) -> bytes:
        # Slack gives the bot 3 s for an acknowledgement; a busy machine gets generously more.
        connection = http.client.HTTPConnection(self._host, self._port, timeout=wait_s + 60.0)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request(verb, self._path + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"The local workspace at {self._host}:{self._port} does not answer.",
                hint="Start it with `python -m bot.workspace`.",
            ) from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            problem = json.loads(content) if response.headers.get_content_type() == "application/json" else {}
            message = problem.get("message", f"The local workspace answered {response.status} to {path}.")
            raise UsageError(message, hint=problem.get("hint"))
        return content


def _query(**values: Any) -> str:
    return urlencode({name: value for name, value in values.items() if value is not None})
