-- align(pool): makes the submitters' queues hold what the pool's queue holds. They differ where a version that knew no
-- turns has queued a job, which nobody would claim, or has claimed one, which everybody would try to. Answers how many
-- jobs it put right. Costs no more than a count while nothing differs.
local pool, queue = args.pool, key("queue", args.pool)
local submitters, counted = redis.call("ZRANGE", key("turns", pool), 0, -1), 0
for _, who in ipairs(submitters) do
    counted = counted + redis.call("ZCARD", own_queue(pool, who))
end
if counted == redis.call("ZCARD", queue) then
    return { "ok", 0 }
end

local changed = 0
for _, who in ipairs(submitters) do
    for _, job in ipairs(redis.call("ZRANGE", own_queue(pool, who), 0, -1)) do
        if not redis.call("ZSCORE", queue, job) then
            changed = changed + redis.call("ZREM", own_queue(pool, who), job)
        end
    end
    place_submitter(pool, who)
end
local places = redis.call("ZRANGE", queue, 0, -1, "WITHSCORES")
for index = 1, #places, 2 do
    local job, place = places[index], places[index + 1]
    local who = is_job(job, pool) and field(job, "submitted_by")
    if not who then
        changed = changed + redis.call("ZREM", queue, job)
    elseif redis.call("ZADD", own_queue(pool, who), "NX", place, job) == 1 then
        changed = changed + 1
        place_submitter(pool, who)
    end
end
return { "ok", changed }
