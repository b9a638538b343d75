"""A TCP line that fails as networks do: cut, silent, slow, or losing the reply to a request that got through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

CHUNK = 1 << 16


class FaultyLine:
    """A relay on the loopback, as a context manager; healthy until told otherwise. Callable from any thread.

    Args:
        port: Where the server listens on the loopback; it may come and go.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty line", daemon=True)
        self._lines: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._open = True
        self._delay_s = 0.0
        self._lose: list[bytes] = []
        self.lost_replies = 0
        """Replies that were lost as asked for."""
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """End every connection and refuse new ones, as a host without a network sees it."""
        self._do(self._set_open(False))

    def mend(self) -> None:
        """Be a healthy line again: let connections through, and all that was held back while it was silent."""
        self._do(self._mend())

    def fall_silent(self) -> None:
        """Let nothing through in either direction, without a word; TCP delivers it after `mend`."""
        self._do(self._silence())

    def slow_down(self, delay_s: float) -> None:
        """Let everything through later by so much, until `mend`."""
        self._do(self._set_delay(delay_s))

    def lose_reply(self, word: bytes) -> None:
        """Let the next request that contains these bytes through, and cut its connection instead of its reply."""
        self._do(self._forget_one(word))

    def lose_no_more(self) -> None:
        """Take back what `lose_reply` has asked for and nobody has met yet."""
        self._do(self._forget_none())

    @property
    def waits_to_lose(self) -> bool:
        """Whether a reply that shall be lost has not come yet."""
        return bool(self._lose)

    # --- in the loop ---------------------------------------------------------------------------------------------

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(what, self._loop)
        done.result(10.0)

    async def _listen(self) -> None:
        self._passable = asyncio.Event()
        self._passable.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        await self._set_open(False)

    async def _set_open(self, passable: bool) -> None:
        self._open = passable
        if not passable:
            tasks = list(self._lines)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _silence(self) -> None:
        self._passable.clear()

    async def _set_delay(self, delay_s: float) -> None:
        self._delay_s = delay_s

    async def _mend(self) -> None:
        self._open, self._delay_s = True, 0.0
        self._passable.set()

    async def _forget_one(self, word: bytes) -> None:
        self._lose.append(word)

    async def _forget_none(self) -> None:
        self._lose.clear()

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ends = self._lines[task] = [near_out]
        # A cut line is reset, a server that is down refuses: either way this connection is over.
        with suppress(OSError, asyncio.CancelledError):
            if self._open:
                far_in, far_out = await asyncio.open_connection("127.0.0.1", self._server_port)
                ends.append(far_out)
                losing = asyncio.Event()
                both = [self._relay(near_in, far_out, losing), self._relay(far_in, near_out, losing, replies=True)]
                pumps = [asyncio.ensure_future(pump) for pump in both]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        del self._lines[task]

    async def _relay(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, losing: asyncio.Event, *, replies: bool = False
    ) -> None:
        """Pass bytes on to the end of the connection. A client of Redis waits for each reply before it asks again."""
        while data := await source.read(CHUNK):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._passable.wait()
            if replies and losing.is_set():
                self.lost_replies += 1
                return
            if not replies:
                self._notice(data, losing)
            sink.write(data)
            await sink.drain()

    def _notice(self, request: bytes, losing: asyncio.Event) -> None:
        for word in self._lose:
            if word in request:
                self._lose.remove(word)
                losing.set()
                return


def port_of(url: str) -> int:
    """Where a server on the loopback listens."""
    return int(url.rpartition(":")[2].partition("/")[0])


def through(line: FaultyLine, url: str) -> str:
    """A server's address at the near end of a line."""
    head, _, tail = url.rpartition("@")
    return f"{head}@127.0.0.1:{line.port}/{tail.partition('/')[2]}"
