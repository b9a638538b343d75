-- obstacle(pool, host, gpus, gpu_memory_gib): what keeps one worker from the queued jobs of a pool while others may take
-- them: "drained", or "unfit" where there are some and none of them suits it; else nothing.
if redis.call("HEXISTS", key("drains"), args.host) == 1 then
    return { "ok", "drained" }
end
local waits = false
for _, who in ipairs(redis.call("ZRANGE", key("turns", args.pool), 0, -1)) do
    for _, job in ipairs(redis.call("ZRANGE", own_queue(args.pool, who), 0, -1)) do
        if suits(job) then
            return { "ok" }
        end
        waits = true
    end
end
return { "ok", waits and "unfit" or nil }
