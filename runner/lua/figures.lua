-- figures(): what metrics tell of every pool, in one moment. Reads what is first in each queue and what runs; nothing of
-- jobs that are over. Numbers go as text, because cjson and Lua round microseconds.
local pools = {}
for _, pool in ipairs(redis.call("SMEMBERS", key("pools"))) do
    local oldest = ""
    for rank = 0, 2 do
        -- Inside a priority the places are in the order of submission.
        local from, to = whole(rank * RANK), "(" .. whole((rank + 1) * RANK)
        local first = redis.call("ZRANGEBYSCORE", key("queue", pool), from, to, "LIMIT", 0, 1)[1]
        local at = first and is_job(first, pool) and field(first, "submitted_at")
        if at and (oldest == "" or tonumber(at) < tonumber(oldest)) then
            oldest = at
        end
    end
    local active = {}
    for _, job in ipairs(redis.call("SMEMBERS", key("active", pool))) do
        if is_job(job, pool) then
            -- Inside a text of an event's the quotes would be escaped.
            local measured = ""
            for _, text in ipairs(redis.call("LRANGE", key("job", job, "events"), -16, -1)) do
                if string.find(text, '"kind":"metrics_logged"', 1, true) then
                    measured = text
                end
            end
            local lease = redis.call("ZSCORE", key("leases"), job)
            table.insert(active, {
                job, field(job, "state"), field(job, "host") or "", field(job, "attempt"),
                lease and whole(tonumber(lease)) or "", measured,
            })
        end
    end
    table.insert(pools, { pool, redis.call("ZCARD", key("queue", pool)), oldest, active })
end
return { "ok", { whole(now_us()), redis.call("HGETALL", key("totals")), pools } }
