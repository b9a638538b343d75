-- Who is next in a pool. A submitter's own jobs come by place: priority, then number. Between submitters a job comes by
-- (blocked, priority, level, seat). Its level is how many jobs its submitter has running in the pool, plus how many of
-- his own come before it: so it says how many he has been given by then, and a claim changes nobody's level. The seat
-- breaks ties: one sits down behind all others when one comes, and again when a job of one's own has ended. A job is
-- blocked where its level reaches the limit of jobs that one submitter may run.
local RANK, LEVEL = 1e15, 1e10
local BLOCKED = 3 * RANK

local function own_queue(pool, who)
    return key("queue", pool, who)
end

local function limit(pool, name)
    return tonumber(redis.call("HGET", key("limits", pool), name) or nil) or math.huge
end

local function seat(pool, who)
    return tonumber(redis.call("HGET", key("seats", pool), who))
end

local function sit_down(pool, who)
    redis.call("HSET", key("seats", pool), who, redis.call("HINCRBY", key("counters"), "seat", 1))
end

local function running(pool, who)
    return redis.call("SCARD", key("active", pool, who))
end

local function turn(place, level, seat_number, most)
    local blocked = level >= most and BLOCKED or 0
    return blocked + math.floor(place / RANK) * RANK + level * LEVEL + seat_number
end

-- To be called after every change to what a submitter has queued or running in a pool.
local function place_submitter(pool, who)
    local first = redis.call("ZRANGE", own_queue(pool, who), 0, 0, "WITHSCORES")
    if not first[1] then
        redis.call("ZREM", key("turns", pool), who)
        if running(pool, who) == 0 then
            redis.call("HDEL", key("seats", pool), who)
        end
        return
    end
    -- Who comes; or whose job was claimed by a version that knew no turns, and is given back now.
    if not seat(pool, who) then
        sit_down(pool, who)
    end
    local score = turn(tonumber(first[2]), running(pool, who), seat(pool, who), limit(pool, "max_running_per_user"))
    redis.call("ZADD", key("turns", pool), whole(score), who)
end

-- How many jobs of a pool come before this queued one, and itself. What is known of the other submitters stands in
-- their turns already; only for those who have more than one job before this one has Redis to be asked.
local function position(job)
    local pool, who = field(job, "pool"), field(job, "submitted_by")
    local index = redis.call("ZRANK", own_queue(pool, who), job)
    if not index then
        return false
    end
    local rank = math.floor(tonumber(redis.call("ZSCORE", own_queue(pool, who), job)) / RANK)
    local level, own_seat, most = running(pool, who) + index, seat(pool, who), limit(pool, "max_running_per_user")
    local above, below = "(" .. whole(rank * RANK), "(" .. whole((rank + 1) * RANK)
    local before, turns = index, redis.call("ZRANGE", key("turns", pool), 0, -1, "WITHSCORES")
    for entry = 1, #turns, 2 do
        local other, score = turns[entry], tonumber(turns[entry + 1])
        if other ~= who then
            local first_rank, has = math.floor(score % BLOCKED / RANK), math.floor(score % RANK / LEVEL)
            local ahead = level - has + (score % LEVEL < own_seat and 1 or 0)
            if first_rank > rank then
                ahead = 0
            elseif first_rank < rank then
                local of_higher = redis.call("ZCOUNT", own_queue(pool, other), "-inf", above)
                local down_to_rank = redis.call("ZCOUNT", own_queue(pool, other), "-inf", below)
                ahead = math.max(of_higher, math.min(ahead, down_to_rank))
            elseif ahead > 1 then
                ahead = math.min(ahead, redis.call("ZCOUNT", own_queue(pool, other), "-inf", below))
            end
            ahead = math.max(0, ahead)
            if most < math.huge then
                local unblocked = math.max(0, most - has)
                if level >= most then
                    ahead = math.max(ahead, math.min(unblocked, redis.call("ZCARD", own_queue(pool, other))))
                else
                    ahead = math.min(ahead, unblocked)
                end
            end
            before = before + ahead
        end
    end
    return before + 1
end
