"""Starts and stops the local workspace: in a thread of a test, or in the foreground of its own process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from bot.workspace import files
from bot.workspace.api import WebApi
from bot.workspace.call_log import CallLog
from bot.workspace.client import WorkspaceClient
from bot.workspace.control import Control
from bot.workspace.faults import Faults
from bot.workspace.interactions import Interactions
from bot.workspace.journal import Journal
from bot.workspace.methods import Services
from bot.workspace.people import ChangeFeed
from bot.workspace.rate_limits import RateLimits
from bot.workspace.sockets import SocketHub
from bot.workspace.state import WorkspaceState
from runner.errors import UnavailableError

LONGEST_BODY = 64 << 20


class LocalWorkspace:
    """A Slack workspace on 127.0.0.1.

    Started again after a stop it has the same address, tokens and messages, so a stop is an outage of Slack.

    Args:
        state_dir: Messages outlive the process in `<state_dir>/workspace/`; None keeps them in memory.
        port: TCP port, 0 for a free one.
        ack_timeout_s: Seconds that the bot has for an acknowledgement; Slack gives 3.

    Raises:
        UnavailableError: The state folder cannot be used.
    """

    def __init__(self, *, state_dir: Path | None = None, port: int = 0, ack_timeout_s: float = 3.0) -> None:
        self.port = port
        self.bot_token = f"xoxb-local-{secrets.token_hex(16)}"
        self.app_token = f"xapp-local-{secrets.token_hex(16)}"
        self.control_token = secrets.token_hex(16)
        self.faults = Faults()
        self._ack_timeout_s = ack_timeout_s
        self._journal = Journal(None if state_dir is None else state_dir / "workspace")
        try:
            self._state = WorkspaceState(self._journal)
        except UnavailableError:
            self._journal.close()
            raise
        self._log = CallLog()
        self._limits = RateLimits()
        self._interactions = Interactions(self._state)
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] | None = None

    @property
    def url(self) -> str:
        """Address, ending in a slash."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def api_url(self) -> str:
        """The `base_url` of a WebClient."""
        return f"{self.url}api/"

    @property
    def client(self) -> WorkspaceClient:
        """Steers this workspace as its people do."""
        return WorkspaceClient(f"{self.url}control/", self.control_token)

    # --- in a thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve in a thread; returns once the address answers.

        Raises:
            UnavailableError: The port is taken.
        """
        started = threading.Event()
        failures: list[BaseException] = []

        async def serve() -> None:
            async with self._serving():
                loop, stopped = asyncio.get_running_loop(), asyncio.Event()
                self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
                started.set()
                await stopped.wait()

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:  # noqa: BLE001 - handed to the caller of start, below
                failures.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=run, name="local-workspace", daemon=True)
        self._thread.start()
        started.wait()
        if failures:
            self._thread.join()
            self._thread = None
            raise failures[0]

    def stop(self) -> None:
        """Stop serving; every connection ends. Harmless when not started."""
        if self._thread is not None and self._stop is not None:
            self._stop()
            self._thread.join()
            self._thread = self._stop = None

    def close(self) -> None:
        """Stop for good and let go of the state folder."""
        self.stop()
        self._journal.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- in the foreground -----------------------------------------------------------------------------------------

    def run(self, address_file: Path, announce: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM.

        Args:
            address_file: Written once the address answers (mode 0600, it holds the tokens), removed at the end.
            announce: Told the address.

        Raises:
            UnavailableError: The port is taken.
        """

        async def serve() -> None:
            async with self._serving():
                stopped = asyncio.Event()
                loop = asyncio.get_running_loop()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, stopped.set)
                self._write_address(address_file)
                announce(self.url)
                await stopped.wait()

        try:
            asyncio.run(serve())
        finally:
            address_file.unlink(missing_ok=True)
            self._journal.close()

    def _write_address(self, path: Path) -> None:
        content = {
            "api_url": self.api_url,
            "bot_token": self.bot_token,
            "app_token": self.app_token,
            "control_url": f"{self.url}control/",
            "control_token": self.control_token,
            "pid": os.getpid(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readers poll for this file: it must never be seen half-written.
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        temporary.replace(path)

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        hub = SocketHub(self._ack_timeout_s)
        feed = ChangeFeed(self._state)
        services = Services(self._state, hub, self._interactions, self.faults, self.url)
        api = WebApi(services, self._log, self._limits, {self.bot_token: "bot", self.app_token: "app"})
        control = Control(services, feed, self._log, self._limits, self.control_token)

        async def receive_upload(request: web.Request) -> web.Response:
            return await files.receive_upload(services, request)

        async def send_file(request: web.Request) -> web.Response:
            if request.headers.get("Authorization") != f"Bearer {self.bot_token}":
                return web.Response(status=403, text="Send the bot token as bearer.")
            return await files.send_file(services, request)

        app = web.Application(client_max_size=LONGEST_BODY)
        app.add_routes(
            [
                web.get("/api/{method}", api.handle),
                web.post("/api/{method}", api.handle),
                web.post("/commands/{team}/{key}", api.handle_response_url),
                web.post("/upload/v1/{file_id}", receive_upload),
                web.get("/files/{file_id}/{name}", send_file),
                web.get("/link/", hub.serve),
                *control.routes(),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=1.0, access_log=None)
        await runner.setup()
        try:
            await self._listen(runner)
            services.base_url = self.url
            hub.address = self.url.replace("http", "ws", 1)
            yield
        finally:
            feed.close()
            await hub.close()
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
        except OSError as error:
            raise UnavailableError(
                f"Port {self.port} of 127.0.0.1 cannot be used: {error.strerror}.",
                hint="Choose another with --port, or leave it out for a free one.",
            ) from error
        self.port = int(runner.addresses[0][1])
