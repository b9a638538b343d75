-- stop(write, job, by, requested, cancelled): somebody wants this job to end.
local state = field(args.job, "state")
if not state then
    return { "missing" }
end
if not readable(args.job) then
    return { "newer" }
end
if done_before(args.job) or state == "stopping" then
    return record(args.job)
end
if is_final(state) then
    return { "finished", state }
end

local to, event = "cancelled", args.cancelled
if state == "running" then
    to, event = "stopping", args.requested
end
if not may_move(args.job, to) then
    return { "illegal", state }
end
remember(args.job)
redis.call("HSET", job_key(args.job), "stop_requested_by", args.by)
move(args.job, to, event)
return record(args.job)
