"""One job's thread: brings Slack up to date with the job's events, in order, each milestone once."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace

from bot.delivery import ROOT, DeliveryStore, ThreadMemory
from bot.outbox import Later, Outbox, Post, RefusedError
from bot.render.message import Message
from bot.render.plan import render_root
from bot.render.progress import render_progress
from bot.render.thread import is_progress, render_milestone, render_refusal
from bot.story import Story, tell
from runner.errors import JobError
from runner.event_lines import StoredEvent
from runner.events import MetricsLogged
from runner.job_events import JobQueued
from runner.jobs import why_none_takes
from runner.store import Store

EDIT_EVERY_S = 3.0
"""Shortest pause between two edits of the same message: Slack permits about 50 edits a minute for a whole workspace."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
"""The wait after a failed call doubles from the first to the longest."""
REFUSED_WAIT_S = 300.0
"""Pause before Slack is asked again to post where it has refused: somebody may have invited the bot by then."""
REFUSED_TRIES = 288
"""After a day of refusals a thread is given up until the bot starts again."""

_log = logging.getLogger(__name__)


class _Patience:
    """How long to wait after a call that did not work out: what Slack asks for, else longer each time."""

    def __init__(self) -> None:
        self._next_s = FIRST_WAIT_S
        self._until = float("-inf")

    def worked(self) -> None:
        """The call worked out."""
        self._next_s = FIRST_WAIT_S

    def failed(self, later: Later) -> float:
        """The call did not; returns the seconds to wait."""
        wait_s = later.wait_s or self._next_s
        self._next_s = min(2 * self._next_s, LONGEST_WAIT_S)
        self._until = time.monotonic() + wait_s
        return wait_s

    def left_s(self) -> float:
        """Seconds of the wait that are left."""
        return max(0.0, self._until - time.monotonic())


class _EditedMessage:
    """A message that is edited in place: what it shows, and when it may change again."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._shown: Message | None = None
        self._edited_at = float("-inf")
        self.patience = _Patience()
        self.lost = False
        """Slack refuses to edit it, for instance because somebody has deleted it."""

    def posted(self, shown: Message) -> None:
        """It has just been posted with this content."""
        self._shown, self._edited_at = shown, time.monotonic()

    def differs(self, wanted: Message) -> bool:
        """Whether an edit would change anything."""
        return not self.lost and self._shown != wanted

    def wait_s(self, *, at_once: bool) -> float:
        """Seconds until it may be edited; `at_once` waits only where Slack has asked for it."""
        pause = 0.0 if at_once else self._edited_at + self._every_s - time.monotonic()
        return max(pause, self.patience.left_s())


class JobThread:
    """The thread of one job. Not safe for two threads at once: its caller sees to that.

    Args:
        job_id: The job.
        store: Its record and events.
        memory: What has been said already.
        outbox: Sends.
        edit_every_s: Shortest pause between two edits of the same message.
    """

    def __init__(
        self,
        job_id: str,
        *,
        store: Store,
        memory: DeliveryStore,
        outbox: Outbox,
        edit_every_s: float = EDIT_EVERY_S,
    ) -> None:
        self.job_id = job_id
        self.closed = False
        """Nothing more will be said: it is finished, was never asked for, or Slack has refused it for a day."""
        self.finished = False
        """Everything has been said, or nobody knows any more what was to be said."""
        self._store = store
        self._memory = memory
        self._outbox = outbox
        self._story: Story | None = None
        """Everything up to the last event whose milestone is posted."""
        self._pending: deque[StoredEvent] = deque()
        self._root = _EditedMessage(edit_every_s)
        self._progress = _EditedMessage(edit_every_s)
        self._patience = _Patience()
        self._refusals = 0

    def catch_up(self) -> float | None:
        """Say everything that is to be said now.

        Returns:
            Seconds after which it wants to be called again even without news, None when only news matter.

        Raises:
            UnavailableError: Redis is away.
        """
        if self.closed:
            return None
        if (left_s := self._patience.left_s()) > 0:
            return left_s
        try:
            wait_s = self._catch_up()
        except Later as later:
            wait_s = self._patience.failed(later)
            _log.info("%s: %s; again in %.1f s.", self.job_id, later, wait_s)
            return wait_s
        except RefusedError as refusal:
            return self._refused(refusal)
        self._patience.worked()
        return wait_s

    def _refused(self, refusal: RefusedError) -> float | None:
        self._refusals += 1
        if self._refusals == 1:
            _log.warning(
                "%s: Slack refuses to post (%s). It is asked again every %g minutes for a day.",
                self.job_id,
                refusal.code,
                REFUSED_WAIT_S / 60,
            )
            self._tell_requester(refusal.code)
        if self._refusals == REFUSED_TRIES:
            self._close()
            return None
        return self._patience.failed(Later(refusal.code, REFUSED_WAIT_S))

    def _tell_requester(self, code: str) -> None:
        """Tell whoever started the job, in a direct message and once, why its thread does not open or go on."""
        if self._story is None or not self._memory.remember_refusal(self.job_id, code):
            return
        record = self._story.record
        try:
            self._outbox.tell_privately(record.submitted_by, render_refusal(record, code))
        except (Later, RefusedError) as error:
            _log.info("%s: %s could not be told of it: %s", self.job_id, record.submitted_by, error)

    def _catch_up(self) -> float | None:
        if self._story is None:
            try:
                self._story = Story(self._store.get(self.job_id))
            except JobError as error:
                if error.code != "job-not-found":
                    _log.warning("%s: its thread says nothing more. %s", self.job_id, error.message)
                # Else it ended so long ago that it has been forgotten between the news of it and now.
                self.finished = True
                self._close()
                return None
        story = self._story
        channel = story.record.origin.get("channel")
        known = self._memory.recall(self.job_id)
        if channel is None or known.done:
            self.finished = known.done
            self._close()
            return None
        seen = self._pending[-1].seq if self._pending else story.seq
        self._pending.extend(self._store.events(self.job_id, after=seen))
        root_ts = known.root_ts or self._post_root(story, channel, known)
        self._say_pending(channel, root_ts)
        return self._edit_both(channel, root_ts)

    def _post_root(self, story: Story, channel: str, known: ThreadMemory) -> str:
        for stored in self._pending:
            story = tell(story, stored)
        message = render_root(story)
        ts = self._outbox.post(Post(story.record, channel, ROOT, message), known)
        self._memory.remember_root(self.job_id, channel, ts)
        self._store.set_origin(self.job_id, {"thread_ts": ts})
        self._root.posted(_without_ids(story))
        return ts

    def _say_pending(self, channel: str, root_ts: str) -> None:
        while self._pending:
            stored, story = self._pending[0], self._story
            if story is None:
                raise AssertionError("a story is begun before anything is said")
            known = self._memory.recall(self.job_id)
            if stored.seq > known.cursor and not isinstance(stored.event, MetricsLogged):
                message = self._milestone(story, stored)
                if message is not None:
                    # What has been trained so far stands above what comes next.
                    self._edit_progress(channel, known, story, at_once=True)
                    self._reply(Post(story.record, channel, stored.seq, message, root_ts), known, story, stored)
            self._story = tell(story, stored)
            self._pending.popleft()

    def _reply(self, post: Post, known: ThreadMemory, story: Story, stored: StoredEvent) -> None:
        progress = is_progress(story, stored)
        ts = self._outbox.post(post, known)
        self._memory.remember_reply(self.job_id, post.seq, ts, is_progress=progress)
        if progress:
            self._progress.posted(post.message)

    def _milestone(self, story: Story, stored: StoredEvent) -> Message | None:
        if not isinstance(stored.event, JobQueued):
            return render_milestone(story, stored)
        workers = self._store.workers(story.record.pool)
        kept = why_none_takes(story.record.spec.project.compute, workers)
        frozen = self._store.frozen()
        return render_milestone(story, stored, pool_is_served=bool(workers), frozen=frozen, kept=kept)

    def _edit_both(self, channel: str, root_ts: str) -> float | None:
        """Bring the edited messages up to date, or say in how many seconds that is possible."""
        story = self._story
        if story is None:
            raise AssertionError("a story is begun before anything is edited")
        known = self._memory.recall(self.job_id)
        # The last word is not kept waiting.
        over = story.end is not None
        waits = [
            self._edit_progress(channel, known, story, at_once=over),
            self._edit(
                self._root,
                render_root(story),
                shown=_without_ids(story),
                place=(channel, root_ts),
                classic=known.classic,
                at_once=over,
            ),
        ]
        wait_s = max(waits) if over else min((wait for wait in waits if wait > 0), default=0.0)
        if wait_s > 0:
            return wait_s
        if over:
            self._memory.finish(self.job_id, channel, root_ts)
            self.finished = True
            self._close()
        return None

    def _edit_progress(self, channel: str, known: ThreadMemory, story: Story, *, at_once: bool) -> float:
        if story.training is None or known.progress_ts is None:
            return 0.0
        message = render_progress(story)
        return self._edit(
            self._progress,
            message,
            shown=message,
            place=(channel, known.progress_ts),
            classic=known.classic,
            at_once=at_once,
        )

    def _edit(
        self,
        edited: _EditedMessage,
        message: Message,
        *,
        shown: Message,
        place: tuple[str, str],
        classic: bool,
        at_once: bool,
    ) -> float:
        """Edit if there is a difference and it is time; returns the seconds to wait, 0 when it is up to date."""
        if not edited.differs(shown):
            return 0.0
        if (wait_s := edited.wait_s(at_once=at_once)) > 0:
            return wait_s
        channel, ts = place
        try:
            self._outbox.edit(self.job_id, channel, ts, message, classic=classic)
        except Later as later:
            wait_s = edited.patience.failed(later)
            _log.info("%s: not edited yet: %s; again in %.1f s.", self.job_id, later, wait_s)
            return wait_s
        except RefusedError as refusal:
            edited.lost = True
            _log.warning("%s: Slack refuses to edit message %s (%s).", self.job_id, ts, refusal.code)
        else:
            edited.patience.worked()
            edited.posted(shown)
        return 0.0

    def _close(self) -> None:
        self.closed = True
        self._story = None
        self._pending.clear()


def _without_ids(story: Story) -> Message:
    """The root message as it can be compared: its blocks' ids change with every event, its words do not."""
    return render_root(replace(story, seq=0))
