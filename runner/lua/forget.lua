-- forget(keep_us, most): removes all that is kept of the jobs that ended longest ago.
local before = whole(now_us() - args.keep_us)
local old = redis.call("ZRANGEBYSCORE", key("finished"), "-inf", "(" .. before, "LIMIT", 0, args.most)
for _, job in ipairs(old) do
    local state = field(job, "state")
    if state then
        redis.call("ZREM", key("jobs", state), job)
    end
    redis.call("ZREM", key("finished"), job)
    redis.call("ZREM", key("news"), job)
    redis.call("DEL", job_key(job), key("job", job, "events"), key("job", job, "writes"))
end
return { "ok", #old }
