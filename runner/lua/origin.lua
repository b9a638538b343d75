-- origin(job, fields): where a job is reported; one that has been forgotten meanwhile stays forgotten.
if redis.call("EXISTS", job_key(args.job)) == 0 then
    return { "missing" }
end
set_fields(args.job, args.fields)
return { "ok" }
