-- A job's record, and what every step asks of it. KEYS[1]: the prefix. ARGV[1]: the step's named arguments as one JSON
-- object. Answers: {status, …}. The keys are explained in runner/store.py.
local prefix = KEYS[1]
local args = cjson.decode(ARGV[1])

-- Writes remembered per job, so that a repeat after a lost reply is recognised however late it comes.
local REMEMBERED_WRITES = 64

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

-- Whether something is a job, of a certain pool if that is given. Whoever else writes to this Redis may have left names in
-- queues and leases that are none; they must not hold up the others.
local function is_job(job, pool)
    if redis.call("TYPE", job_key(job)).ok ~= "hash" or field(job, "id") ~= job then
        return false
    end
    if not args.transitions[field(job, "state") or ""] or not field(job, "pool") or (pool and field(job, "pool") ~= pool) then
        return false
    end
    return field(job, "submitted_by") and tonumber(field(job, "number") or nil) and tonumber(field(job, "place") or nil)
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
    local readable, lost = pcall(cjson.decode, field(job, "lost_hosts") or "[]")
    return readable and type(lost) == "table" and lost or {}
end

local function owns(job, token)
    return field(job, "token") == token
end

-- Whether this version of the software understands the record; asked before a job is moved, because whoever cannot read
-- it must leave it as it is.
local function readable(job)
    return (tonumber(field(job, "schema_version") or nil) or 0) <= args.reads
end

local function may_move(job, to)
    local following = args.transitions[field(job, "state")]
    return following ~= nil and following[to] ~= nil
end

local function is_final(state)
    return next(args.transitions[state]) == nil
end
