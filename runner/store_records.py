"""A job's record as the fields of a Redis hash, and back. Pure.

Plain fields keep their name; `spec`, `summary` and `lost_hosts` are JSON; moments are µs since 1970; each key of the
origin is a field of its own (`origin.<key>`), so that one can be added without reading the others.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runner.errors import JobError, UnavailableError
from runner.events import CheckpointSaved, ChildEvent, PhaseStarted
from runner.job_events import FinalEvent, JobCancelled, JobFailed, JobSucceeded
from runner.jobs import JobRecord, LostHost, WorkerInfo
from runner.reports import RunSummary
from runner.spec import Compute, RunSpec

SCHEMA_VERSION = 2
"""Raised when an older process could misread what a newer one writes; 2 holds settings that a reader of 1 refuses.
Every step that moves a job compares it first (`readable` in `lua/shared/record.lua`), so that an older process leaves a
newer job where it is."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LOST_HOSTS = TypeAdapter(tuple[LostHost, ...])


def as_fields(reply: Any) -> dict[str, str]:
    """A hash, as `HGETALL` answers it inside a script (flat) or outside (already paired)."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def microseconds(moment: datetime) -> int:
    """Since 1970, as scores and moments are kept."""
    return (moment - _EPOCH) // _MICROSECOND


def origin_fields(origin: dict[str, str]) -> dict[str, str]:
    """Where to report, one field a key."""
    return {f"origin.{name}": value for name, value in origin.items()}


def need_fields(compute: Compute) -> dict[str, str]:
    """What a job needs of a worker, where claims can see it without the spec."""
    return {"gpus": str(compute.gpus), "min_gpu_memory_gib": str(compute.min_gpu_memory_gib or 0)}


def worker_arguments(worker: WorkerInfo) -> dict[str, Any]:
    """Who asks for work, and with which devices; `lua/shared/choice.lua` compares them with `need_fields`."""
    return {
        "host": worker.host,
        "worker": worker.name,
        "gpus": len(worker.gpus),
        "gpu_memory_gib": worker.gpu_memory_gib,
    }


def progress_fields(event: ChildEvent, host: str | None) -> dict[str, str]:
    """What an event of an attempt that runs on a host says about where the job stands."""
    match event:
        case PhaseStarted(phase=phase):
            return {"phase": phase}
        case CheckpointSaved(step=step, path=path):
            return {"checkpoint": path, "checkpoint_step": str(step), "checkpoint_host": host or ""}
        case _:
            return {}


def outcome_fields(event: FinalEvent) -> dict[str, str]:
    """What the last event of a job says about its outcome."""
    match event:
        case JobSucceeded(summary=summary, adapter_path=path):
            return {"summary": summary.model_dump_json(), "adapter_path": path}
        case JobFailed(code=code, message=message, hint=hint):
            return {"error_code": code, "error_message": message} | ({} if hint is None else {"error_hint": hint})
        case JobCancelled():
            return {}


def written_by_newer(job_id: str) -> UnavailableError:
    """What this process says of a job that it cannot read."""
    return UnavailableError(
        f"Job {job_id} was written by a newer version of this software.", hint="Update this process."
    )


class BadRecordError(JobError):
    """A record that no version of this software has written: somebody else did, or it was damaged."""

    code = "record-invalid"


def read_job(reply: Any) -> JobRecord:
    """Build the record; fields of the store's own and unknown ones are left out.

    Raises:
        UnavailableError: A newer version of this software wrote it.
        BadRecordError: It does not say what a job's record says.
    """
    fields = as_fields(reply)
    try:
        version = int(fields["schema_version"])
        if version <= SCHEMA_VERSION:
            return _read_job(fields)
        raise written_by_newer(fields["id"])
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'its JSON'}: {first['msg']}"
    except KeyError as error:
        problem = f"{error.args[0]} is missing"
    except (ValueError, OverflowError) as error:
        problem = str(error)
    raise BadRecordError(
        f"The record of job {str(fields.get('id'))[:80]!r} in Redis is not one of ours: {problem[:300]}.",
        hint="Find out who else writes to this Redis, and start the job again.",
    ) from None


def _read_job(fields: dict[str, str]) -> JobRecord:
    record: dict[str, Any] = {name: value for name, value in fields.items() if name in JobRecord.model_fields}
    record["spec"] = RunSpec.model_validate_json(fields["spec"])
    record["origin"] = {name.removeprefix("origin."): fields[name] for name in fields if name.startswith("origin.")}
    if "summary" in fields:
        record["summary"] = RunSummary.model_validate_json(fields["summary"])
    if "lost_hosts" in fields:
        record["lost_hosts"] = _LOST_HOSTS.validate_json(fields["lost_hosts"])
    for name in ("submitted_at", "started_at", "finished_at"):
        if name in fields:
            record[name] = _EPOCH + int(fields[name]) * _MICROSECOND
    return JobRecord.model_validate(record)
