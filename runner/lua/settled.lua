-- settled(run): seconds since this very server process was first seen. A restart or a failover changes its run id.
local server = key("server")
local now = now_us()
if redis.call("HGET", server, "run") ~= args.run then
    redis.call("HSET", server, "run", args.run, "since", whole(now))
end
return { "ok", tostring((now - tonumber(redis.call("HGET", server, "since"))) / 1000000) }
