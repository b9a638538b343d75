"""The three steps of an upload (`files_upload_v2` of slack_sdk): ask for an address, send the bytes, share."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from aiohttp import web

from bot.workspace.arguments import Arguments
from bot.workspace.errors import SlackError
from bot.workspace.methods import Services, method, the_channel, thread_root
from bot.workspace.records import StoredFile
from bot.workspace.state import BOT_USER, new_id
from bot.workspace.wire import file_json


@method("files.getUploadURLExternal")
def files_get_upload_url_external(services: Services, arguments: Arguments) -> dict[str, Any]:
    """An address to send one file's bytes to."""
    name = PurePosixPath(arguments.required("filename")).name
    arguments.required("length")
    size = arguments.number("length", default=0, most=1 << 30)
    file = StoredFile(id=new_id("F"), name=name, title=name, size=size, user=BOT_USER.id)
    services.state.put_file(file)
    return {"upload_url": f"{services.base_url}upload/v1/{file.id}", "file_id": file.id}


@method("files.completeUploadExternal")
def files_complete_upload_external(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Share what was sent, in one message where a channel is named."""
    wanted = arguments.array("files") or []
    if not wanted:
        raise SlackError("invalid_arguments", ["missing required field: files"])
    files = []
    for item in wanted:
        file = services.state.files.get(item.get("id", "")) if isinstance(item, dict) else None
        if file is None or not file.uploaded or file.shared:
            raise SlackError("file_not_found")
        files.append(file.model_copy(update={"title": item.get("title") or file.name, "shared": True}))
    place = next((name for name in ("channel_id", "channels") if name in arguments), None)
    if place is not None:
        channel = the_channel(services, arguments, place)
        root = thread_root(services.state, channel.id, arguments.optional("thread_ts"))
    for file in files:
        services.state.put_file(file)
    if place is not None:
        services.state.post(
            channel.id,
            BOT_USER.id,
            text=arguments.optional("initial_comment") or "",
            thread_ts=root,
            files=tuple(file.id for file in files),
        )
    return {"files": [file_json(file, services.base_url) for file in files]}


async def receive_upload(services: Services, request: web.Request) -> web.Response:
    """The second step: the bytes, as many as announced."""
    file = services.state.files.get(request.match_info["file_id"])
    if file is None or file.uploaded:
        return web.Response(status=404, text="This upload address is not, or no longer, valid.")
    content = await request.read()
    if request.content_type == "multipart/form-data":
        return web.Response(status=400, text="Send the bytes as the body.")
    if len(content) != file.size:
        return web.Response(status=400, text=f"Announced {file.size} bytes, got {len(content)}.")
    services.state.journal.write_file(file.id, content)
    services.state.put_file(file.model_copy(update={"uploaded": True}))
    return web.Response(text=f"OK - {file.size}")


async def send_file(services: Services, request: web.Request) -> web.Response:
    """A shared file's bytes (`url_private`)."""
    file = services.state.files.get(request.match_info["file_id"])
    if file is None or not file.shared:
        return web.Response(status=404, text="There is no such file.")
    return web.Response(body=services.state.journal.read_file(file.id), content_type="application/octet-stream")
