-- submit(request, job, rank, fields, event): a new job at the end of its pool's queue.
local request = key("request", args.request)
local earlier = redis.call("GET", request)
if earlier then
    return record(earlier)
end
if redis.call("EXISTS", job_key(args.job)) == 1 then
    return { "taken" }
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
redis.call("SET", request, args.job)
redis.call("SADD", key("pools"), args.fields.pool)
enter(args.job, "queued")

local event = cjson.decode(args.event)
event.position = redis.call("ZRANK", key("queue", args.fields.pool), args.job) + 1
add_event(args.job, cjson.encode(event))
return record(args.job)
