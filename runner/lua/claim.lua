-- claim(write, pool, host, worker, gpus, gpu_memory_gib, lease_us, event): the best queued job of a pool that suits one
-- worker.
local claimed = key("claim", args.write)
local earlier = redis.call("GET", claimed)
if earlier then
    -- Unless it has been lost again since: then the token is gone, or the claim another one's.
    if field(earlier, "claim") == args.write and field(earlier, "token") then
        return record(earlier)
    end
    return { "none" }
end
if redis.call("EXISTS", key("freeze")) == 1 or redis.call("HEXISTS", key("drains"), args.host) == 1 then
    return { "none" }
end
if redis.call("SCARD", key("active", args.pool)) >= limit(args.pool, "max_running") then
    return { "none" }
end

local now = now_us()
local job = first_in_turn(args.pool)
if not job then
    return { newer and "newer" or "none", newer }
end

-- Tied to the clock, so that a token can never come twice, even when Redis has lost its last second of writes.
local token = whole(math.max(now, tonumber(redis.call("HGET", key("counters"), "token") or 0) + 1))
redis.call("HSET", key("counters"), "token", token)
local attempt = redis.call("HINCRBY", job_key(job), "attempt", 1)
for _, name in ipairs({ "host", "worker" }) do
    local before = field(job, name)
    if before then
        redis.call("HSET", job_key(job), "former_" .. name, before)
    end
end
redis.call("HSET", job_key(job), "host", args.host, "worker", args.worker, "token", token, "claim", args.write)
redis.call("HDEL", job_key(job), "phase")
redis.call("HSETNX", job_key(job), "started_at", whole(now))
redis.call("ZADD", key("leases"), whole(now + args.lease_us), job)
redis.call("SET", claimed, job, "EX", 3600)

local event = cjson.decode(args.event)
event.attempt = attempt
move(job, "running", cjson.encode(event))
return record(job)
