-- Which queued job a worker may take: what its devices suffice for, and what its host has not declined.

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
