-- What every step shares; put in front of each of the other scripts. The keys are explained in runner/store.py.
-- KEYS[1]: the prefix. ARGV[1]: the step's named arguments as one JSON object. Answers: {status, …}.
local prefix = KEYS[1]
local args = cjson.decode(ARGV[1])

-- Writes remembered per job, so that a repeat after a lost reply is recognised however late it comes.
local REMEMBERED_WRITES = 64
local WRITES_OF_AN_END = 8
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

local function add_event(job, event)
    local events = key("job", job, "events")
    local seq = redis.call("LLEN", events) + tonumber(field(job, "thinned") or 0) + 1
    local attempt = field(job, "attempt")
    local text = '{"seq":' .. seq .. ',"attempt":' .. attempt .. ',"event":' .. event .. "}"
    redis.call("RPUSH", events, text)
    redis.call("HINCRBY", job_key(job), "bytes", #text)
    local news = whole(redis.call("HINCRBY", key("counters"), "news", 1))
    redis.call("ZADD", key("news"), news, job)
    redis.call("XADD", key("feed"), "MAXLEN", "~", FEED_LENGTH, news .. "-0", "job", job)
end

-- The measurement that an event is; nothing for a milestone.
local function measurement(text)
    for _, kind in ipairs(args.measurements) do
        -- Inside a text of the event's the quotes would be escaped.
        if string.find(text, '"kind":"' .. kind .. '"', 1, true) then
            return kind
        end
    end
end

local function kind_of(text)
    return cjson.decode(text).event.kind
end

-- The events of a history by kind, in order; those for which `kind(text)` is nothing are left out.
local function grouped(history, kind)
    local found = {}
    for index, text in ipairs(history) do
        local of_kind = kind(text)
        if of_kind then
            found[of_kind] = found[of_kind] or {}
            table.insert(found[of_kind], { index = index, seq = tonumber(string.match(text, '^{"seq":(%d+)')) })
        end
    end
    return found
end

-- What remains of a history when of each group a share stays: an even choice, always with the first and the newest.
local function chosen(history, groups, share)
    local dropped, kept = {}, {}
    for _, members in pairs(groups) do
        local first, last = members[1].seq, members[#members].seq
        local pause = math.max(1, (last - first) / math.max(1, #members * share - 1))
        local mark = first
        for position, member in ipairs(members) do
            if member.seq >= mark or position == #members then
                mark = first + (math.floor((member.seq - first) / pause) + 1) * pause
            else
                dropped[member.index] = true
            end
        end
    end
    for index, text in ipairs(history) do
        if not dropped[index] then
            table.insert(kept, text)
        end
    end
    return kept
end

local function bytes_of(history)
    local bytes = 0
    for _, text in ipairs(history) do
        bytes = bytes + #text
    end
    return bytes
end

-- Leaves every milestone and an even choice of the measurements, so that about `keep` events remain. Where these have
-- more than `most_bytes`, something is wrong with the job: then an even choice of milestones too, in half of that.
local function thin(job, keep, most_bytes)
    local events = key("job", job, "events")
    local history = redis.call("LRANGE", events, 0, -1)
    local groups, measured = grouped(history, measurement), 0
    for _, members in pairs(groups) do
        measured = measured + #members
    end
    local share = math.min(1, math.max(0, keep - (#history - measured)) / math.max(1, measured))
    local kept = share < 1 and chosen(history, groups, share) or history
    local bytes = bytes_of(kept)
    if bytes > most_bytes then
        kept = chosen(kept, grouped(kept, kind_of), most_bytes / 2 / bytes)
        bytes = bytes_of(kept)
    end
    redis.call("HSET", job_key(job), "bytes", bytes)
    if #kept == #history then
        return
    end
    redis.call("DEL", events)
    for _, text in ipairs(kept) do
        redis.call("RPUSH", events, text)
    end
    redis.call("HINCRBY", job_key(job), "thinned", #history - #kept)
end

-- Thins a history that has grown too long to half of what is kept, so that it costs little on average.
local function thin_when_long(job)
    local events = key("job", job, "events")
    local known = redis.call("HMGET", job_key(job), "thin_at", "bytes", "bytes_at")
    local too_long = redis.call("LLEN", events) > tonumber(known[1] or args.keep_events)
    if too_long or tonumber(known[2] or 0) > tonumber(known[3] or args.keep_bytes) then
        thin(job, math.floor(args.keep_events / 2), args.keep_bytes)
        -- Where milestones alone fill it, not every further event may cost a look at all.
        local left, bytes = redis.call("LLEN", events), tonumber(field(job, "bytes"))
        redis.call(
            "HSET", job_key(job),
            "thin_at", math.max(args.keep_events, left + math.floor(args.keep_events / 4)),
            "bytes_at", math.max(args.keep_bytes, math.floor(bytes * 1.25))
        )
    end
end

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

-- Whether the devices of the worker that asks suffice for a job: the rule of runner.jobs.WorkerInfo.fits. Uses args.gpus
-- and args.gpu_memory_gib.
local function fits(job)
    local gpus, memory = unpack(redis.call("HMGET", job_key(job), "gpus", "min_gpu_memory_gib"))
    if not gpus then
        -- Queued by a version that knew no least memory.
        gpus, memory = cjson.decode(field(job, "spec")).project.compute.gpus or 1, 0
    end
    if args.gpus == 0 then
        return tonumber(memory) == 0
    end
    return tonumber(gpus) <= args.gpus and tonumber(memory) <= args.gpu_memory_gib
end

local function has_declined(host, job)
    return tonumber(redis.call("ZSCORE", key("declined", host), job) or 0) > now_us()
end

-- A queued job that only a newer version can read, as soon as `suits` has met one.
local newer = nil

-- Whether the worker that asks may take a queued job. Uses args.pool, args.host and what `fits` uses.
local function suits(job)
    if not is_job(job, args.pool) then
        return false
    end
    if not readable(job) then
        newer = job
        return false
    end
    return may_move(job, "running") and not has_declined(args.host, job) and fits(job)
end

-- The queued job of a pool that comes first of those that suit; nothing where none does or all are blocked.
local function first_in_turn(pool)
    local best, best_turn = nil, BLOCKED
    local most, count = limit(pool, "max_running_per_user"), 0
    while true do
        local who, ahead = unpack(redis.call("ZRANGE", key("turns", pool), count, count, "WITHSCORES"))
        -- A submitter's later jobs never come before his first.
        if not who or tonumber(ahead) >= best_turn then
            return best
        end
        local index = 0
        while true do
            local job, place = unpack(redis.call("ZRANGE", own_queue(pool, who), index, index, "WITHSCORES"))
            if not job then
                break
            end
            if suits(job) then
                local own_turn = turn(tonumber(place), running(pool, who), seat(pool, who), most)
                if own_turn < best_turn then
                    best, best_turn = job, own_turn
                end
                break
            end
            index = index + 1
        end
        count = count + 1
    end
end

-- A moment that does not come.
local NEVER = 9e15

-- Whether any live worker of a job's pool is on a host that has not declined it.
local function others_may_take(job)
    for _, name in ipairs(redis.call("SMEMBERS", key("workers"))) do
        local readable, worker = pcall(cjson.decode, redis.call("GET", key("worker", name)) or "")
        if readable and type(worker) == "table" and worker.pool == field(job, "pool") and type(worker.host) == "string" then
            if not has_declined(worker.host, job) then
                return true
            end
        end
    end
    return false
end

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
