-- A job's history: events are appended, and measurements are thinned where it has grown long.

-- The feed only wakes readers up; what they missed is in the sorted set "news", which is never trimmed.
local FEED_LENGTH = 1000

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
