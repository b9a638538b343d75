-- settled(run, pause_us): for how many seconds this very server process has been asked without a long pause. A restart or
-- a failover changes its run id. A pause means that nobody reached it, so that nobody could renew either.
local server = key("server")
local now = now_us()
local asked = tonumber(redis.call("HGET", server, "asked") or 0)
if redis.call("HGET", server, "run") ~= args.run or now - asked > args.pause_us then
    redis.call("HSET", server, "run", args.run, "since", whole(now))
end
redis.call("HSET", server, "asked", whole(now))
return { "ok", tostring((now - tonumber(redis.call("HGET", server, "since"))) / 1000000) }
