-- expire(write, job, token, requeued, cancelled, poisoned, exhausted, poison_losses, most_losses): the reconciler calls an
-- attempt dead, if its lease has really run out; or, with its token, whoever knows that its worker is dead.
if not is_job(args.job) then
    redis.call("ZREM", key("leases"), args.job)
    return { "lost" }
end
if done_before(args.job) then
    return record(args.job)
end
if args.token then
    if not owns(args.job, args.token) then
        return { "lost" }
    end
else
    local lease = redis.call("ZSCORE", key("leases"), args.job)
    if not lease or tonumber(lease) > now_us() then
        return { "lost" }
    end
end
if not readable(args.job) then
    return { "newer" }
end

local lost = lost_hosts(args.job)
local loss = {
    host = field(args.job, "host"),
    phase = field(args.job, "phase") or nil,
    step = tonumber(field(args.job, "checkpoint_step") or 0),
    token = field(args.job, "token"),
}
table.insert(lost, loss)

local in_one_place = {}
for _, other in ipairs(lost) do
    if other.phase == loss.phase and other.step == loss.step and not other.returned then
        table.insert(in_one_place, other.host)
    end
end

-- The verdict's sentences come with names in braces for what only this step knows.
local function failed(verdict, hosts)
    local facts = {
        count = tostring(#hosts),
        phase = loss.phase and "in phase " .. loss.phase or "before its first phase",
        hosts = table.concat(hosts, ", then on "),
    }
    local event = cjson.decode(verdict)
    event.message = string.gsub(event.message, "{(%w+)}", facts)
    return event
end

local end_event = nil
if field(args.job, "state") ~= "stopping" then
    if #in_one_place >= args.poison_losses then
        end_event = failed(args.poisoned, in_one_place)
    elseif #lost >= args.most_losses then
        local hosts = {}
        for _, other in ipairs(lost) do
            table.insert(hosts, other.host)
        end
        end_event = failed(args.exhausted, hosts)
    end
end

if end_event and not may_move(args.job, "failed") then
    return { "illegal", field(args.job, "state") }
end
if not end_event then
    local status, answer = give_back(args.job)
    if status then
        return { status, answer }
    end
end
redis.call("HSET", job_key(args.job), "lost_hosts", cjson.encode(lost))
if end_event then
    remember(args.job)
    set_fields(args.job, { error_code = end_event.code, error_message = end_event.message, error_hint = end_event.hint })
    move(args.job, "failed", cjson.encode(end_event))
end
return record(args.job)
