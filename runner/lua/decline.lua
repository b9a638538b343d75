-- decline(write, job, token, for_us, declined, cancelled): the worker that has claimed a job gives it back before it has
-- begun, because its host cannot run it as it was asked. No attempt is spent, and the host does not claim it again until it
-- readmits it; or, where `for_us` is given, for so long after the job came into the queue. "waited" where that is over.

-- A moment that does not come.
local NEVER = 9e15

-- Whether any live worker of a job's pool is on a host that has not declined it.
local function others_may_take(job)
    for _, name in ipairs(redis.call("SMEMBERS", key("workers"))) do
        local readable, worker = pcall(cjson.decode, redis.call("GET", key("worker", name)) or "")
        if readable and type(worker) == "table" and worker.pool == field(job, "pool") and type(worker.host) == "string" then
            if not has_declined(worker.host, job) then
                return true
            end
        end
    end
    return false
end

if done_before(args.job) then
    return record(args.job)
end
if not owns(args.job, args.token) then
    return { "lost" }
end
local job, host = args.job, field(args.job, "host")
if field(job, "state") == "stopping" then
    args.requeued = args.declined
    local status, answer = give_back(job)
    return status and { status, answer } or record(job)
end
if not may_move(job, "queued") then
    return { "illegal", field(job, "state") }
end
local until_us = NEVER
if args.for_us then
    until_us = tonumber(field(job, "requeued_at") or field(job, "submitted_at")) + args.for_us
    if until_us <= now_us() then
        return { "waited" }
    end
end
remember(job)
-- Its record says again where it ran before.
if redis.call("HINCRBY", job_key(job), "attempt", -1) == 0 then
    redis.call("HDEL", job_key(job), "started_at")
end
for _, name in ipairs({ "host", "worker" }) do
    local before = field(job, "former_" .. name)
    if before then
        redis.call("HSET", job_key(job), name, before)
    else
        redis.call("HDEL", job_key(job), name)
    end
end
redis.call("ZADD", key("declined", host), whole(until_us), job)
redis.call("SADD", key("job", job, "declined"), host)
local event = cjson.decode(args.declined)
event.host = host
event.others = others_may_take(job)
move(job, "queued", cjson.encode(event))
return record(job)
