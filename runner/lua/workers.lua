-- workers(): the name of every live worker and what it has announced, in turn; forgets those that have gone. In one step,
-- because a worker may announce itself between a look and a removal.
local live = {}
for _, name in ipairs(redis.call("SMEMBERS", key("workers"))) do
    local worker = redis.call("GET", key("worker", name))
    if worker then
        table.insert(live, name)
        table.insert(live, worker)
    else
        redis.call("SREM", key("workers"), name)
    end
end
return { "ok", live }
