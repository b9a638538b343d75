-- renew(job, token, lease_us): a new lease, if the job is still this attempt's own.
if not owns(args.job, args.token) then
    return { "lost" }
end
redis.call("ZADD", key("leases"), whole(now_us() + args.lease_us), args.job)
return { "ok", field(args.job, "stop_requested_by") or "" }
