-- renew(job, token, lease_us): a new lease, if the job is still this attempt's own.
if not owns(args.job, args.token) then
    -- Whoever asks is alive: its host was cut off, and has not died of the job.
    local lost = lost_hosts(args.job)
    for _, loss in ipairs(lost) do
        if loss.token == args.token and not loss.returned then
            loss.returned = true
            redis.call("HSET", job_key(args.job), "lost_hosts", cjson.encode(lost))
        end
    end
    return { "lost" }
end
redis.call("ZADD", key("leases"), whole(now_us() + args.lease_us), args.job)
return { "ok", field(args.job, "stop_requested_by") or "" }
