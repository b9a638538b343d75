-- What every step shares; put in front of each of the other scripts. The keys are explained in runner/store.py.
-- KEYS[1]: the prefix. ARGV[1]: the step's named arguments as one JSON object. Answers: {status, …}.
local prefix = KEYS[1]
local args = cjson.decode(ARGV[1])

-- Writes remembered per job, so that a repeat after a lost reply is recognised however late it comes.
local REMEMBERED_WRITES = 64
-- The feed only wakes readers up; what they missed is in the sorted set "news", which is never trimmed.
local FEED_LENGTH = 1000

local function key(...)
    return prefix .. ":" .. table.concat({ ... }, ":")
end

local function job_key(job)
    return key("job", job)
end

-- Numbers beyond 14 digits lose them in Lua's own conversion.
local function whole(number)
    return string.format("%.0f", number)
end

local function now_us()
    local time = redis.call("TIME")
    return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function field(job, name)
    return redis.call("HGET", job_key(job), name)
end

local function set_fields(job, fields)
    for name, value in pairs(fields) do
        redis.call("HSET", job_key(job), name, value)
    end
end

local function record(job)
    return { "ok", redis.call("HGETALL", job_key(job)) }
end

local function done_before(job)
    return redis.call("LPOS", key("job", job, "writes"), args.write) ~= false
end

local function remember(job)
    local writes = key("job", job, "writes")
    redis.call("LPUSH", writes, args.write)
    redis.call("LTRIM", writes, 0, REMEMBERED_WRITES - 1)
end

local function lost_hosts(job)
    return cjson.decode(field(job, "lost_hosts") or "[]")
end

local function owns(job, token)
    return field(job, "token") == token
end

local function may_move(job, to)
    return args.transitions[field(job, "state")][to] ~= nil
end

local function is_final(state)
    return next(args.transitions[state]) == nil
end

local function add_event(job, event)
    local events = key("job", job, "events")
    local seq = redis.call("LLEN", events) + 1
    local attempt = field(job, "attempt")
    redis.call("RPUSH", events, '{"seq":' .. seq .. ',"attempt":' .. attempt .. ',"event":' .. event .. "}")
    local news = whole(redis.call("HINCRBY", key("counters"), "news", 1))
    redis.call("ZADD", key("news"), news, job)
    redis.call("XADD", key("feed"), "MAXLEN", "~", FEED_LENGTH, news .. "-0", "job", job)
end

-- Takes up a state with everything that belongs to it.
local function enter(job, state)
    redis.call("HSET", job_key(job), "state", state)
    redis.call("ZADD", key("jobs", state), field(job, "number"), job)
    if state == "queued" then
        redis.call("ZADD", key("queue", field(job, "pool")), field(job, "place"), job)
    elseif is_final(state) then
        local now = whole(now_us())
        redis.call("HSET", job_key(job), "finished_at", now)
        redis.call("ZADD", key("finished"), now, job)
    end
end

-- The only way from one state to another; the caller has asked may_move before its first write.
local function move(job, to, event)
    local from = field(job, "state")
    redis.call("ZREM", key("jobs", from), job)
    if from == "queued" then
        redis.call("ZREM", key("queue", field(job, "pool")), job)
    end
    if to == "queued" or is_final(to) then
        redis.call("ZREM", key("leases"), job)
        redis.call("HDEL", job_key(job), "token")
    end
    enter(job, to)
    add_event(job, event)
end

-- Back to the queue with an attempt, or to its end where somebody has asked for that. Uses args.write, args.requeued and
-- args.cancelled; answers nothing, or "illegal" and the state.
local function give_back(job)
    local to, event = "queued", cjson.decode(args.requeued)
    event.host = field(job, "host")
    event.phase = field(job, "phase") or cjson.null
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
    move(job, to, cjson.encode(event))
end
