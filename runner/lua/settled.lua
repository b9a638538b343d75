-- settled(run, pause_us, lease_us): for how many seconds this very server process has been asked without a long pause. A
-- restart or a failover changes its run id. A pause means that nobody reached it, so that nobody could renew either; or
-- that the server's clock was set forward, and every lease seems to have run out.
local server = key("server")
local now = now_us()
local asked = tonumber(redis.call("HGET", server, "asked") or 0)
if redis.call("HGET", server, "run") ~= args.run or math.abs(now - asked) > args.pause_us then
    redis.call("HSET", server, "run", args.run, "since", whole(now))
end
if asked - now > args.pause_us then
    -- The clock was set back. Whoever lives renews soon; nobody else's lease may last until the former time comes again.
    local latest = whole(now + args.lease_us)
    for _, job in ipairs(redis.call("ZRANGEBYSCORE", key("leases"), "(" .. latest, "+inf")) do
        redis.call("ZADD", key("leases"), latest, job)
    end
end
redis.call("HSET", server, "asked", whole(now))
return { "ok", tostring((now - tonumber(redis.call("HGET", server, "since"))) / 1000000) }
