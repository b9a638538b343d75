"""Puts TLS in front of a server that has none, as a team's proxy does; the embedded Valkey is built without it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CERTIFICATES = Path(__file__).parent / "certificates"
"""`ca.pem` has signed `server.pem`, which is `localhost` and nobody else."""


@contextmanager
def tls_in_front_of(port: int) -> Iterator[int]:
    """Listen on the loopback, and pass on what comes over TLS to the plain port; yields where it listens."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now = [writer]
        try:
            # Here and not before it: so a client that turns away in the middle of it is this task's to close, too.
            await writer.start_tls(context)
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            open_now.append(far_writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:  # Whoever hangs up is a client's own business.
            pass
        finally:
            # Also when the proxy ends: a loop that is closed first leaves open sockets behind.
            for each in open_now:
                each.close()
                with suppress(OSError):
                    await each.wait_closed()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    asyncio.run_coroutine_threadsafe(_end(server), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
