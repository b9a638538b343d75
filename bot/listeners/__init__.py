"""What Slack tells the bot, one short module a surface. Every listener acknowledges first and hands the rest over."""

from __future__ import annotations

from slack_bolt import App

from bot.desk import Desk
from bot.listeners import command, errors, mention, stop_button


def register(app: App, desk: Desk) -> None:
    """Connect every surface."""
    command.register(app, desk)
    stop_button.register(app, desk)
    mention.register(app, desk)
    errors.register(app)
