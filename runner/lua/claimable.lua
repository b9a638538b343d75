-- claimable(pool): how many queued jobs could be claimed at once, as far as a freeze and the pool's limits go, and how
-- many jobs it had to put right before it could tell. Costs one command more than the call while nothing waits.
local pool, queue, turns = args.pool, key("queue", args.pool), key("turns", args.pool)
if redis.call("EXISTS", queue, turns) == 0 then
    return { "ok", { 0, 0 } }
end

-- The submitters' queues have to hold what the pool's queue holds. They differ where a version that knew no turns has
-- queued a job, which nobody would claim, or has claimed one, which everybody would try to.
local submitters, in_own, waiting = redis.call("ZRANGE", turns, 0, -1), 0, redis.call("ZCARD", queue)
for _, who in ipairs(submitters) do
    in_own = in_own + redis.call("ZCARD", own_queue(pool, who))
end
local aligned = 0
if in_own ~= waiting then
    for _, who in ipairs(submitters) do
        for _, job in ipairs(redis.call("ZRANGE", own_queue(pool, who), 0, -1)) do
            if not redis.call("ZSCORE", queue, job) then
                aligned = aligned + redis.call("ZREM", own_queue(pool, who), job)
            end
        end
        place_submitter(pool, who)
    end
    local places = redis.call("ZRANGE", queue, 0, -1, "WITHSCORES")
    for index = 1, #places, 2 do
        local job, place = places[index], places[index + 1]
        local who = is_job(job, pool) and field(job, "submitted_by")
        if not who then
            aligned = aligned + redis.call("ZREM", queue, job)
        elseif redis.call("ZADD", own_queue(pool, who), "NX", place, job) == 1 then
            aligned = aligned + 1
            place_submitter(pool, who)
        end
    end
    waiting = redis.call("ZCARD", queue)
end

if redis.call("EXISTS", key("freeze")) == 1 then
    return { "ok", { 0, aligned } }
end
local most, count = limit(pool, "max_running_per_user"), waiting
if most < math.huge then
    count = 0
    for _, who in ipairs(redis.call("ZRANGE", turns, 0, -1)) do
        local free = math.max(0, most - running(pool, who))
        count = count + math.min(free, redis.call("ZCARD", own_queue(pool, who)))
    end
end
local free = limit(pool, "max_running") - redis.call("SCARD", key("active", pool))
return { "ok", { math.max(0, math.min(count, free)), aligned } }
