-- order(pool): the ids of the queued jobs, the next to run first.
local most = limit(args.pool, "max_running_per_user")
local jobs, turns = {}, {}
for _, who in ipairs(redis.call("ZRANGE", key("turns", args.pool), 0, -1)) do
    local level, own_seat = running(args.pool, who), seat(args.pool, who)
    local queued = redis.call("ZRANGE", own_queue(args.pool, who), 0, -1, "WITHSCORES")
    for index = 1, #queued, 2 do
        table.insert(jobs, queued[index])
        turns[queued[index]] = turn(tonumber(queued[index + 1]), level, own_seat, most)
        level = level + 1
    end
end
table.sort(jobs, function(one, other)
    return turns[one] < turns[other]
end)
return { "ok", jobs }
