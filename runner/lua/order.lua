-- order(pool, most): the ids of the queued jobs that are next to run, the first of them first; all without `most`.
local limit_of_one = limit(args.pool, "max_running_per_user")
local most = args.most or redis.call("ZCARD", key("queue", args.pool))
local jobs, turns = {}, {}
for _, who in ipairs(redis.call("ZRANGE", key("turns", args.pool), 0, -1)) do
    local level, own_seat = running(args.pool, who), seat(args.pool, who)
    -- Of nobody can more be among the first than are wanted.
    local queued = redis.call("ZRANGE", own_queue(args.pool, who), 0, most - 1, "WITHSCORES")
    for index = 1, #queued, 2 do
        table.insert(jobs, queued[index])
        turns[queued[index]] = turn(tonumber(queued[index + 1]), level, own_seat, limit_of_one)
        level = level + 1
    end
end
table.sort(jobs, function(one, other)
    return turns[one] < turns[other]
end)
local first = {}
for index = 1, math.min(most, #jobs) do
    first[index] = jobs[index]
end
return { "ok", first }
