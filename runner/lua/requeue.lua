-- requeue(write, job, token?, requeued, cancelled): an attempt that ended through no fault of its own.
-- Without a token it is the reconciler that asks, and only a lease that has run out lets it.
if done_before(args.job) then
    return record(args.job)
end
if args.token then
    if not owns(args.job, args.token) then
        return { "lost" }
    end
else
    local lease = redis.call("ZSCORE", key("leases"), args.job)
    if not lease or tonumber(lease) > now_us() then
        return { "lost" }
    end
end

local to, event = "queued", cjson.decode(args.requeued)
event.host = field(args.job, "host")
if field(args.job, "state") == "stopping" then
    to, event = "cancelled", cjson.decode(args.cancelled)
    event.by = field(args.job, "stop_requested_by")
    -- Nobody is there any more who could look for checkpoints; the history knows the last one.
    local history = redis.call("LRANGE", key("job", args.job, "events"), 0, -1)
    for index = #history, 1, -1 do
        local told = cjson.decode(history[index]).event
        if told.kind == "checkpoint_saved" then
            event.step, event.checkpoint = told.step, told.path
            break
        end
    end
end
if not may_move(args.job, to) then
    return { "illegal", field(args.job, "state") }
end
remember(args.job)
move(args.job, to, cjson.encode(event))
return record(args.job)
