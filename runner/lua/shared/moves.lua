-- From one state to another, with everything that belongs to a state.

local WRITES_OF_AN_END = 8

local function is_active(state)
    return state == "running" or state == "stopping"
end

-- Takes up a state with everything that belongs to it.
local function enter(job, state)
    local pool, who = field(job, "pool"), field(job, "submitted_by")
    redis.call("HSET", job_key(job), "state", state)
    redis.call("ZADD", key("jobs", state), field(job, "number"), job)
    if state == "queued" then
        redis.call("ZADD", key("queue", pool), field(job, "place"), job)
        redis.call("ZADD", own_queue(pool, who), field(job, "place"), job)
    elseif is_active(state) then
        redis.call("SADD", key("active", pool), job)
        redis.call("SADD", key("active", pool, who), job)
    elseif is_final(state) then
        local now = whole(now_us())
        redis.call("HSET", job_key(job), "finished_at", now)
        redis.call("ZADD", key("finished"), now, job)
    end
    place_submitter(pool, who)
end

-- Counts an event that moves a job, for metrics: records are forgotten, sums are not.
local function tally(job, event)
    local told = cjson.decode(event)
    local detail = told.code or told.reason or (told.kind == "job_claimed" and told.attempt > 1 and "again") or ""
    redis.call("HINCRBY", key("totals"), field(job, "pool") .. " " .. told.kind .. " " .. detail, 1)
end

-- The only way from one state to another; the caller has asked may_move before its first write.
local function move(job, to, event)
    local from, pool, who = field(job, "state"), field(job, "pool"), field(job, "submitted_by")
    redis.call("ZREM", key("jobs", from), job)
    if from == "queued" then
        redis.call("ZREM", key("queue", pool), job)
        redis.call("ZREM", own_queue(pool, who), job)
    end
    if to == "queued" or is_final(to) then
        redis.call("ZREM", key("leases"), job)
        redis.call("HDEL", job_key(job), "token")
        redis.call("SREM", key("active", pool), job)
        redis.call("SREM", key("active", pool, who), job)
    end
    if is_active(from) and is_final(to) then
        sit_down(pool, who)
    end
    enter(job, to)
    add_event(job, event)
    tally(job, event)
    if is_final(to) then
        for _, host in ipairs(redis.call("SMEMBERS", key("job", job, "declined"))) do
            redis.call("ZREM", key("declined", host), job)
        end
        redis.call("DEL", key("job", job, "declined"))
        thin(job, math.floor(args.keep_events / 20), math.floor(args.keep_bytes / 10))
        -- Repeats can only be of what came last; one that comes later than this meets a job that is over.
        redis.call("LTRIM", key("job", job, "writes"), 0, WRITES_OF_AN_END - 1)
        redis.call("EXPIRE", key("job", job, "writes"), 86400)
    end
end

-- Back to the queue with an attempt, or to its end where somebody has asked for that. Uses args.write, args.requeued and
-- args.cancelled; answers nothing, or "illegal" and the state.
local function give_back(job)
    local to, event = "queued", cjson.decode(args.requeued)
    event.host = field(job, "host")
    event.phase = field(job, "phase") or cjson.null
    event.step = tonumber(field(job, "checkpoint_step") or nil)
    if field(job, "state") == "stopping" then
        to, event = "cancelled", cjson.decode(args.cancelled)
        event.by = field(job, "stop_requested_by")
        -- Nobody is there any more who could look for checkpoints; the record knows the last one.
        event.step = tonumber(field(job, "checkpoint_step") or nil)
        event.checkpoint = field(job, "checkpoint") or nil
    end
    if not may_move(job, to) then
        return "illegal", field(job, "state")
    end
    remember(job)
    redis.call("HSET", job_key(job), "requeued_at", whole(now_us()))
    move(job, to, cjson.encode(event))
end
