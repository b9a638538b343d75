from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest
from slack_sdk import WebClient

from bot.workspace.server import LocalWorkspace
from bot.workspace.state import BOT_USER, CHANNEL, YOU

ErrorOf = Callable[..., str]
JOB = {"event_type": "qlora_job", "event_payload": {"job_id": "demo-abc12"}}
SECTION = {"type": "section", "text": {"type": "mrkdwn", "text": "hello"}}


def post(client: WebClient, text: str = "hello", **arguments: Any) -> str:
    return str(client.chat_postMessage(channel=CHANNEL.id, text=text, **arguments)["ts"])


# --- tokens and arguments --------------------------------------------------------------------------------------------


def test_auth_test_names_the_bot(web_client: WebClient) -> None:
    answer = web_client.auth_test()
    assert (answer["user_id"], answer["team"]) == (BOT_USER.id, "Local")


@pytest.mark.parametrize(
    ("token", "error"),
    [(None, "not_authed"), ("xoxb-local-wrong", "invalid_auth")],
)
def test_a_missing_and_a_wrong_token_are_refused(
    workspace: LocalWorkspace, error_of: ErrorOf, token: str | None, error: str
) -> None:
    assert error_of(WebClient(token=token, base_url=workspace.api_url).auth_test) == error


def test_each_method_takes_only_its_own_kind_of_token(
    workspace: LocalWorkspace, web_client: WebClient, error_of: ErrorOf
) -> None:
    assert error_of(web_client.apps_connections_open, app_token=workspace.bot_token) == "not_allowed_token_type"
    assert error_of(web_client.auth_test, token=workspace.app_token) == "not_allowed_token_type"


def test_an_unknown_method_is_refused(web_client: WebClient, error_of: ErrorOf) -> None:
    assert error_of(web_client.api_call, api_method="chat.shout") == "unknown_method"


def test_a_form_carries_blocks_and_metadata_as_json_text(web_client: WebClient) -> None:
    arguments = {"channel": CHANNEL.id, "text": "t", "blocks": json.dumps([SECTION]), "metadata": json.dumps(JOB)}
    message = web_client.api_call("chat.postMessage", params=arguments)["message"]
    assert (message["blocks"][0]["text"], message["metadata"]) == (SECTION["text"], JOB)


def test_a_body_that_is_not_json_is_refused(workspace: LocalWorkspace) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", workspace.port)
    headers = {"Authorization": f"Bearer {workspace.bot_token}", "Content-Type": "application/json"}
    connection.request("POST", "/api/chat.postMessage", "{", headers)
    assert json.loads(connection.getresponse().read())["error"] == "invalid_json"
    connection.close()


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("chat.postMessage", {"text": "x"}, "invalid_arguments"),
        ("chat.postMessage", {"channel": "C0NOWHERE", "text": "x"}, "channel_not_found"),
        ("chat.postMessage", {"channel": CHANNEL.id}, "no_text"),
        ("chat.postMessage", {"channel": CHANNEL.id, "text": " "}, "no_text"),
        ("chat.postMessage", {"channel": CHANNEL.id, "text": "x", "thread_ts": "1.0"}, "thread_not_found"),
        (
            "chat.postMessage",
            {"channel": CHANNEL.id, "text": "x", "metadata": {"event_type": "x"}},
            "invalid_metadata_schema",
        ),
        ("chat.postMessage", {"channel": CHANNEL.id, "text": "x", "metadata": "no json"}, "invalid_metadata_format"),
        ("chat.postMessage", {"channel": CHANNEL.id, "blocks": "no json"}, "invalid_blocks_format"),
        ("chat.postMessage", {"channel": CHANNEL.id, "blocks": [{"type": "nonsense"}]}, "invalid_blocks"),
        ("chat.postMessage", {"channel": CHANNEL.id, "text": "x", "markdown_text": "y"}, "markdown_text_conflict"),
        ("chat.update", {"channel": CHANNEL.id, "text": "x"}, "invalid_arguments"),
        ("chat.update", {"channel": CHANNEL.id, "text": "x", "ts": "1.0"}, "message_not_found"),
        ("chat.delete", {"channel": CHANNEL.id, "ts": "1.0"}, "message_not_found"),
        ("chat.postEphemeral", {"channel": CHANNEL.id, "text": "x"}, "invalid_arguments"),
        ("chat.postEphemeral", {"channel": CHANNEL.id, "text": "x", "user": "U0NOBODY"}, "user_not_in_channel"),
        ("chat.postEphemeral", {"channel": CHANNEL.id, "user": YOU.id}, "no_text"),
        ("chat.getPermalink", {"channel": CHANNEL.id, "message_ts": "1.0"}, "message_not_found"),
        ("conversations.replies", {"channel": CHANNEL.id, "ts": "1.0"}, "thread_not_found"),
        ("conversations.replies", {"channel": CHANNEL.id}, "invalid_arguments"),
        ("conversations.history", {"channel": "C0NOWHERE"}, "channel_not_found"),
        ("conversations.info", {"channel": "C0NOWHERE"}, "channel_not_found"),
        ("conversations.open", {"users": "U0NOBODY"}, "user_not_found"),
        ("users.info", {"user": "U0NOBODY"}, "user_not_found"),
        ("reactions.add", {"channel": CHANNEL.id, "timestamp": "1.0", "name": "eyes"}, "message_not_found"),
        ("reactions.add", {"channel": CHANNEL.id, "name": "eyes"}, "invalid_arguments"),
        ("views.open", {"trigger_id": "1.2.3", "view": {}}, "invalid_trigger_id"),
        ("files.completeUploadExternal", {"files": [{"id": "F0NOTHING"}]}, "file_not_found"),
    ],
)
def test_what_slack_refuses_is_refused(
    web_client: WebClient, error_of: ErrorOf, method: str, arguments: dict[str, Any], error: str
) -> None:
    assert error_of(web_client.api_call, api_method=method, json=arguments) == error


def test_the_bot_cannot_post_where_it_is_no_member(
    workspace: LocalWorkspace, web_client: WebClient, error_of: ErrorOf
) -> None:
    workspace.client.add_channel("private", members=["you"])
    assert error_of(web_client.chat_postMessage, channel="#private", text="x") == "not_in_channel"


# --- messages --------------------------------------------------------------------------------------------------------


def test_timestamps_are_unique_and_strictly_increasing(web_client: WebClient) -> None:
    stamps = [post(web_client) for _ in range(20)]
    assert stamps == sorted(set(stamps))
    assert all(len(stamp.partition(".")[2]) == 6 for stamp in stamps)


def test_text_is_kept_as_sent_and_cut_at_40000_characters(workspace: LocalWorkspace, web_client: WebClient) -> None:
    post(web_client, "a &amp; <!channel> " + "x" * 40_000)
    (message,) = workspace.client.messages()
    assert message.text.startswith("a &amp; <!channel> x")
    assert len(message.text) == 40_000


def test_an_update_over_the_limit_is_refused(web_client: WebClient, error_of: ErrorOf) -> None:
    ts = post(web_client)
    assert error_of(web_client.chat_update, channel=CHANNEL.id, ts=ts, text="x" * 40_001) == "msg_too_long"


def test_an_update_replaces_the_content_and_marks_it_edited(workspace: LocalWorkspace, web_client: WebClient) -> None:
    ts = post(web_client, blocks=[SECTION], metadata=JOB)
    web_client.chat_update(channel=CHANNEL.id, ts=ts, text="new")
    (message,) = workspace.client.messages()
    assert (message.text, message.blocks, message.metadata) == ("new", (), JOB)
    assert message.edited_ts is not None


def test_an_update_with_blocks_alone_keeps_the_text(workspace: LocalWorkspace, web_client: WebClient) -> None:
    ts = post(web_client, "fallback")
    web_client.api_call("chat.update", json={"channel": CHANNEL.id, "ts": ts, "blocks": [SECTION]})
    (message,) = workspace.client.messages()
    assert message.text == "fallback"
    assert message.blocks[0]["text"] == SECTION["text"]


def test_the_bot_can_change_and_delete_only_its_own_messages(
    workspace: LocalWorkspace, web_client: WebClient, error_of: ErrorOf
) -> None:
    theirs = workspace.client.post("mine").ts
    assert error_of(web_client.chat_update, channel=CHANNEL.id, ts=theirs, text="x") == "cant_update_message"
    assert error_of(web_client.chat_delete, channel=CHANNEL.id, ts=theirs) == "cant_delete_message"


def test_a_deleted_message_is_gone(workspace: LocalWorkspace, web_client: WebClient) -> None:
    web_client.chat_delete(channel=CHANNEL.id, ts=post(web_client))
    assert workspace.client.messages() == ()


def test_a_deleted_root_keeps_its_thread(workspace: LocalWorkspace, web_client: WebClient) -> None:
    root = post(web_client)
    post(web_client, "reply", thread_ts=root)
    web_client.chat_delete(channel=CHANNEL.id, ts=root)
    texts = [message.text for message in workspace.client.messages(thread_ts=root)]
    assert texts == ["This message was deleted.", "reply"]


def test_a_reply_to_a_reply_lands_in_the_parents_thread(web_client: WebClient) -> None:
    root = post(web_client)
    reply = post(web_client, "first", thread_ts=root)
    post(web_client, "second", thread_ts=reply)
    messages = web_client.conversations_replies(channel=CHANNEL.id, ts=root)["messages"]
    assert [(m["text"], m["thread_ts"]) for m in messages] == [("hello", root), ("first", root), ("second", root)]
    assert messages[0]["reply_count"] == 2


def test_metadata_is_read_back_only_when_asked_for(web_client: WebClient) -> None:
    root = post(web_client, metadata=JOB)
    plain = web_client.conversations_replies(channel=CHANNEL.id, ts=root)["messages"][0]
    full = web_client.conversations_replies(channel=CHANNEL.id, ts=root, include_all_metadata=True)["messages"][0]
    assert "metadata" not in plain
    assert full["metadata"] == JOB


def test_history_shows_roots_and_broadcast_replies_newest_first(web_client: WebClient) -> None:
    root = post(web_client, "root")
    post(web_client, "hidden", thread_ts=root)
    post(web_client, "shown", thread_ts=root, reply_broadcast=True)
    texts = [message["text"] for message in web_client.conversations_history(channel=CHANNEL.id)["messages"]]
    assert texts == ["shown", "root"]


def test_replies_come_in_pages(web_client: WebClient) -> None:
    root = post(web_client, "0")
    for number in range(1, 5):
        post(web_client, str(number), thread_ts=root)
    texts: list[str] = []
    for page in web_client.conversations_replies(channel=CHANNEL.id, ts=root, limit=2):
        texts.extend(message["text"] for message in page["messages"])
    assert texts == ["0", "1", "2", "3", "4"]


def test_replies_after_a_timestamp_leave_out_the_older(web_client: WebClient) -> None:
    root = post(web_client, "0")
    first = post(web_client, "1", thread_ts=root)
    post(web_client, "2", thread_ts=root)
    answer = web_client.conversations_replies(channel=CHANNEL.id, ts=root, oldest=first)
    assert [message["text"] for message in answer["messages"]] == ["2"]


def test_an_ephemeral_message_is_seen_by_its_one_reader_only(workspace: LocalWorkspace, web_client: WebClient) -> None:
    workspace.client.add_user("ann")
    web_client.chat_postEphemeral(channel=CHANNEL.id, user=YOU.id, text="psst")
    assert [message.text for message in workspace.client.messages()] == ["psst"]
    assert workspace.client.messages(viewer="ann") == ()
    assert web_client.conversations_history(channel=CHANNEL.id)["messages"] == []


def test_an_ephemeral_message_cannot_be_updated(web_client: WebClient, error_of: ErrorOf) -> None:
    ts = web_client.chat_postEphemeral(channel=CHANNEL.id, user=YOU.id, text="psst")["message_ts"]
    assert error_of(web_client.chat_update, channel=CHANNEL.id, ts=ts, text="x") == "message_not_found"


def test_a_reaction_counts_once(workspace: LocalWorkspace, web_client: WebClient, error_of: ErrorOf) -> None:
    ts = post(web_client)
    web_client.reactions_add(channel=CHANNEL.id, timestamp=ts, name="eyes")
    assert error_of(web_client.reactions_add, channel=CHANNEL.id, timestamp=ts, name="eyes") == "already_reacted"
    assert workspace.client.messages()[0].reactions == {"eyes": (BOT_USER.id,)}


def test_a_direct_message_opens_once(web_client: WebClient) -> None:
    first = web_client.conversations_open(users=YOU.id)["channel"]["id"]
    web_client.chat_postMessage(channel=YOU.id, text="hello")
    assert web_client.conversations_open(users=[YOU.id])["channel"]["id"] == first
    assert [m["text"] for m in web_client.conversations_history(channel=first)["messages"]] == ["hello"]


def test_users_and_channels_describe_themselves(web_client: WebClient) -> None:
    assert web_client.users_info(user=YOU.id)["user"]["name"] == "you"
    assert web_client.conversations_info(channel=CHANNEL.id)["channel"]["name"] == "qlora"


def test_a_permalink_names_channel_and_message(web_client: WebClient) -> None:
    ts = post(web_client)
    link = web_client.chat_getPermalink(channel=CHANNEL.id, message_ts=ts)["permalink"]
    assert link.endswith(f"/archives/{CHANNEL.id}/p{ts.replace('.', '')}")


def test_the_app_home_is_published_and_checked(web_client: WebClient, error_of: ErrorOf) -> None:
    view = web_client.views_publish(user_id=YOU.id, view={"type": "home", "blocks": [SECTION]})["view"]
    assert view["type"] == "home"
    assert (
        error_of(web_client.views_publish, user_id=YOU.id, view={"type": "modal", "blocks": []}) == "invalid_arguments"
    )


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_upload_v2_shares_the_bytes_in_a_thread(workspace: LocalWorkspace, web_client: WebClient) -> None:
    root = post(web_client)
    file = web_client.files_upload_v2(
        channel=CHANNEL.id, filename="loss curve.png", content=b"\x89PNG bytes", initial_comment="loss", thread_ts=root
    )["file"]
    message = workspace.client.messages(thread_ts=root)[1]
    assert (message.text, message.files) == ("loss", (file["id"],))
    assert workspace.client.file(file["id"]) == b"\x89PNG bytes"


def test_an_upload_of_another_size_than_announced_is_refused(workspace: LocalWorkspace, web_client: WebClient) -> None:
    target = web_client.files_getUploadURLExternal(filename="a.txt", length=5)
    connection = http.client.HTTPConnection("127.0.0.1", workspace.port)
    connection.request("POST", f"/upload/v1/{target['file_id']}", b"four")
    assert connection.getresponse().status == 400
    connection.close()


def test_a_file_is_not_completed_before_its_bytes_are_there(web_client: WebClient, error_of: ErrorOf) -> None:
    target = web_client.files_getUploadURLExternal(filename="a.txt", length=5)
    assert error_of(web_client.files_completeUploadExternal, files=[{"id": target["file_id"]}]) == "file_not_found"
