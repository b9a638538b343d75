-- events(job, after): the events numbered above `after`, and perhaps some before: of those up to it, no more are missing
-- than have been thinned out at all.
local thinned = tonumber(field(args.job, "thinned") or 0)
return { "ok", redis.call("LRANGE", key("job", args.job, "events"), math.max(0, args.after - thinned), -1) }
