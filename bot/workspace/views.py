"""Modals and App Home: opened, updated and kept; who submits them comes with the web page."""

from __future__ import annotations

from typing import Any

from bot.workspace.arguments import Arguments
from bot.workspace.blocks import VIEW_BLOCKS, check_blocks
from bot.workspace.elements import Checker, check_text
from bot.workspace.errors import SlackError, missing_argument
from bot.workspace.methods import Services, method
from bot.workspace.state import APP_ID, BOT_ID, TEAM_ID, new_id


def _checked_view(arguments: Arguments, kind: str) -> dict[str, Any]:
    view = arguments.values.get("view")
    if not isinstance(view, dict):
        raise missing_argument("view")
    checker = Checker()
    if view.get("type") != kind:
        checker.add(f"must be {kind}", "/view/type")
    if kind == "modal":
        if checker.required(view, "title", "/view"):
            check_text(checker, view["title"], "/view/title", 24, kinds=("plain_text",))
        for name in ("submit", "close"):
            if name in view:
                check_text(checker, view[name], f"/view/{name}", 24, kinds=("plain_text",))
        inputs = any(isinstance(block, dict) and block.get("type") == "input" for block in view.get("blocks") or [])
        if inputs and "submit" not in view:
            checker.add("a modal with inputs needs submit", "/view")
    for name, longest in (("callback_id", 255), ("private_metadata", 3000)):
        if view.get(name):
            checker.string(view[name], f"/view/{name}", longest)
    if checker.findings:
        raise SlackError("invalid_arguments", checker.findings)
    check_blocks(view.get("blocks"), limit=VIEW_BLOCKS, modal=True)
    return view


def _stored(services: Services, key: str, view: dict[str, Any], view_id: str) -> dict[str, Any]:
    stored = {"private_metadata": "", "callback_id": ""} | view
    stored |= {
        "id": view_id,
        "team_id": TEAM_ID,
        "app_id": APP_ID,
        "bot_id": BOT_ID,
        "root_view_id": view_id,
        "hash": f"{services.state.next_ts()}.local",
        "state": {"values": {}},
    }
    services.views[key] = stored
    return {"view": stored}


@method("views.open")
def views_open(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Open a modal for the person whose click or command gave the trigger."""
    services.interactions.use_trigger(arguments.required("trigger_id"))
    view_id = new_id("V")
    return _stored(services, view_id, _checked_view(arguments, "modal"), view_id)


@method("views.update")
def views_update(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Replace an open modal."""
    view_id = arguments.required("view_id")
    if view_id not in services.views:
        raise SlackError("not_found")
    return _stored(services, view_id, _checked_view(arguments, "modal"), view_id)


@method("views.publish")
def views_publish(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Set a person's App Home."""
    user = arguments.required("user_id")
    if user not in services.state.users:
        raise SlackError("user_not_found")
    return _stored(services, user, _checked_view(arguments, "home"), new_id("V"))
