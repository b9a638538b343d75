-- limits(pool, limits): replaces a pool's limits, and lets everybody who waits in it have the place that follows.
redis.call("DEL", key("limits", args.pool))
for name, value in pairs(args.limits) do
    redis.call("HSET", key("limits", args.pool), name, value)
end
for _, who in ipairs(redis.call("ZRANGE", key("turns", args.pool), 0, -1)) do
    place_submitter(args.pool, who)
end
return { "ok" }
