"""What blocks are made of: text objects, buttons and other elements, rich text. Checks them as Slack does. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

INTERACTIVE = (
    "button",
    "checkboxes",
    "datepicker",
    "datetimepicker",
    "timepicker",
    "overflow",
    "radio_buttons",
    "static_select",
    "multi_static_select",
    "external_select",
    "users_select",
    "multi_users_select",
    "conversations_select",
    "channels_select",
    "plain_text_input",
    "number_input",
    "email_text_input",
    "url_text_input",
    "rich_text_input",
    "file_input",
    "workflow_button",
)
BUTTON_FIELDS = ("type", "text", "action_id", "url", "value", "style", "confirm", "accessibility_label")
RICH_TEXT_PARTS = ("rich_text_section", "rich_text_list", "rich_text_preformatted", "rich_text_quote")
INLINE = ("text", "link", "emoji", "user", "channel", "usergroup", "broadcast", "color", "date", "team")


class Checker:
    """Collects every finding, in Slack's words, each with the JSON pointer to its place."""

    def __init__(self) -> None:
        self.findings: list[str] = []

    def add(self, finding: str, at: str) -> None:
        """Note one finding."""
        self.findings.append(f"{finding} [json-pointer:{at}]")

    def required(self, node: dict[str, Any], name: str, at: str) -> bool:
        """Whether the field is there."""
        if node.get(name) is None:
            self.add(f"missing required field: {name}", at)
            return False
        return True

    def known_fields(self, node: object, fields: Collection[str], at: str) -> bool:
        """Whether it is an object; every field it should not have is a finding."""
        if not isinstance(node, dict):
            self.add("must be an object", at)
            return False
        for name in node:
            if name not in fields:
                self.add(f"invalid additional property: {name}", at)
        return True

    def string(self, value: object, at: str, longest: int) -> bool:
        """Whether it is a string of 1 to `longest` characters."""
        if not isinstance(value, str):
            self.add("must be a string", at)
        elif not value:
            self.add("must be more than 0 characters", at)
        elif len(value) > longest:
            self.add(f"must be less than {longest + 1} characters", at)
        else:
            return True
        return False

    def array(self, value: object, at: str, most: int) -> bool:
        """Whether it is a list of 1 to `most` items."""
        if not isinstance(value, list):
            self.add("must be an array", at)
        elif not value:
            self.add("no less than 1 items allowed", at)
        elif len(value) > most:
            self.add(f"no more than {most} items allowed", at)
        else:
            return True
        return False

    def choice(self, value: object, choices: Sequence[str], at: str) -> None:
        """It must be one of `choices`."""
        if value not in choices:
            self.add(f"must be a valid enum value: {', '.join(choices)}", at)


def check_text(
    checker: Checker, node: object, at: str, longest: int, kinds: Sequence[str] = ("mrkdwn", "plain_text")
) -> None:
    """A text object with 1 to `longest` characters."""
    if not isinstance(node, dict):
        checker.add("must be an object", at)
        return
    if node.get("type") not in kinds:
        checker.add(f"must be a {' or '.join(kinds)} object", at)
        return
    checker.known_fields(node, ("type", "text", "emoji" if node["type"] == "plain_text" else "verbatim"), at)
    checker.string(node.get("text"), f"{at}/text", longest)


def check_element(checker: Checker, element: object, at: str, seen: set[str]) -> None:
    """An interactive element; `seen` holds the action ids of its block and gets this one."""
    if not isinstance(element, dict):
        checker.add("must be an object", at)
        return
    kind = element.get("type")
    if kind == "image":
        for name in ("image_url", "alt_text"):
            if checker.required(element, name, at):
                checker.string(element[name], f"{at}/{name}", 3000)
        return
    if kind not in INTERACTIVE:
        checker.add(f"unsupported type: {kind}", at)
        return
    action_id = element.get("action_id")
    if action_id is not None and checker.string(action_id, f"{at}/action_id", 255):
        if action_id in seen:
            checker.add(f"`action_id` {action_id!r} already exists for another element", f"{at}/action_id")
        seen.add(action_id)
    if kind == "button":
        _check_button(checker, element, at)
    elif "placeholder" in element:
        check_text(checker, element["placeholder"], f"{at}/placeholder", 150, kinds=("plain_text",))


def _check_button(checker: Checker, button: dict[str, Any], at: str) -> None:
    checker.known_fields(button, BUTTON_FIELDS, at)
    if checker.required(button, "text", at):
        check_text(checker, button["text"], f"{at}/text", 75, kinds=("plain_text",))
    if "value" in button:
        checker.string(button["value"], f"{at}/value", 2000)
    if "url" in button:
        checker.string(button["url"], f"{at}/url", 3000)
    if "style" in button:
        checker.choice(button["style"], ("primary", "danger"), f"{at}/style")
    if "confirm" in button:
        _check_confirm(checker, button["confirm"], f"{at}/confirm")


def _check_confirm(checker: Checker, confirm: object, at: str) -> None:
    if not checker.known_fields(confirm, ("title", "text", "confirm", "deny", "style"), at):
        return
    assert isinstance(confirm, dict)  # noqa: S101 - known_fields has just found out; this tells mypy
    for name, longest in (("title", 100), ("text", 300), ("confirm", 30), ("deny", 30)):
        if name in confirm:
            kinds = ("plain_text", "mrkdwn") if name == "text" else ("plain_text",)
            check_text(checker, confirm[name], f"{at}/{name}", longest, kinds=kinds)
    if "text" not in confirm:
        checker.add("missing required field: text", at)


def check_rich_text(checker: Checker, node: object, at: str) -> None:
    """A `rich_text` object: parts of known types, made of known inline elements, no text empty."""
    if not isinstance(node, dict) or node.get("type") != "rich_text":
        checker.add("must be a rich_text object", at)
        return
    if not checker.array(node.get("elements"), f"{at}/elements", 1000):
        return
    for index, part in enumerate(node["elements"]):
        place = f"{at}/elements/{index}"
        if not isinstance(part, dict) or part.get("type") not in RICH_TEXT_PARTS:
            checker.add("unsupported rich_text element", place)
        else:
            _check_rich_text_part(checker, part, place)


def _check_rich_text_part(checker: Checker, part: dict[str, Any], at: str) -> None:
    children = part.get("elements")
    if not isinstance(children, list):
        checker.add("missing required field: elements", at)
        return
    if part["type"] == "rich_text_list":
        checker.choice(part.get("style"), ("bullet", "ordered"), f"{at}/style")
    for index, child in enumerate(children):
        place = f"{at}/elements/{index}"
        if isinstance(child, dict) and part["type"] == "rich_text_list" and child.get("type") == "rich_text_section":
            _check_rich_text_part(checker, child, place)
        elif not isinstance(child, dict) or child.get("type") not in INLINE:
            checker.add("unsupported rich_text element", place)
        elif child["type"] == "text":
            checker.string(child.get("text"), f"{place}/text", 3000)
