-- claimable(pool): how many queued jobs could be claimed at once, as far as a freeze and the pool's limits go.
if redis.call("EXISTS", key("freeze")) == 1 then
    return { "ok", 0 }
end
local most = limit(args.pool, "max_running_per_user")
local count = redis.call("ZCARD", key("queue", args.pool))
if most < math.huge then
    count = 0
    for _, who in ipairs(redis.call("ZRANGE", key("turns", args.pool), 0, -1)) do
        local free = math.max(0, most - running(args.pool, who))
        count = count + math.min(free, redis.call("ZCARD", own_queue(args.pool, who)))
    end
end
local free = limit(args.pool, "max_running") - redis.call("SCARD", key("active", args.pool))
return { "ok", math.max(0, math.min(count, free)) }
