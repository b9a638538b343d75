-- submit(request, job, rank, fields, event): a new job behind those of the same submitter in its pool's queue.
local request = key("request", args.request)
local earlier = redis.call("GET", request)
if earlier and redis.call("EXISTS", job_key(earlier)) == 1 then
    return record(earlier)
end
if redis.call("EXISTS", job_key(args.job)) == 1 then
    return { "taken" }
end

local pool, who = args.fields.pool, args.fields.submitted_by
for _, queue in ipairs({ { "max_queued_per_user", own_queue(pool, who) }, { "max_queued", key("queue", pool) } }) do
    local waiting, most = redis.call("ZCARD", queue[2]), limit(pool, queue[1])
    if waiting >= most then
        return { "refused", { queue[1], waiting, most } }
    end
end

local number = redis.call("HINCRBY", key("counters"), "number", 1)
set_fields(args.job, args.fields)
redis.call(
    "HSET", job_key(args.job),
    "number", whole(number),
    "place", whole(args.rank * 1e15 + number),
    "submitted_at", whole(now_us()),
    "attempt", "0"
)
redis.call("SET", request, args.job, "EX", 7 * 86400)
redis.call("SADD", key("pools"), pool)
enter(args.job, "queued")

local event = cjson.decode(args.event)
event.position = position(args.job)
add_event(args.job, cjson.encode(event))
tally(args.job, args.event)
return record(args.job)
