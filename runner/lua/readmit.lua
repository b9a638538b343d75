-- readmit(job, host): a host that has declined a job can run it now.
redis.call("ZREM", key("declined", args.host), args.job)
redis.call("SREM", key("job", args.job, "declined"), args.host)
return { "ok" }
