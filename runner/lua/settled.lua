-- settled(run, pause_us, lease_us): for how many seconds this very server process has been asked without a long pause. A
-- restart or a failover changes its run id. A pause means that nobody reached it, so that nobody could renew either; or
-- that the server's clock was set forward, and every lease seems to have run out.
local server, now = key("server"), now_us()
local known = redis.call("HMGET", server, "run", "since", "asked")
local run, since, asked = known[1], tonumber(known[2] or now), tonumber(known[3] or 0)
if run ~= args.run or math.abs(now - asked) > args.pause_us then
    since = now
end
if asked - now > args.pause_us then
    -- The clock was set back. Whoever lives renews soon; nobody else's lease may last until the former time comes again.
    local latest = whole(now + args.lease_us)
    for _, job in ipairs(redis.call("ZRANGEBYSCORE", key("leases"), "(" .. latest, "+inf")) do
        redis.call("ZADD", key("leases"), latest, job)
    end
end
redis.call("HSET", server, "run", args.run, "since", whole(since), "asked", whole(now))
return { "ok", tostring((now - since) / 1000000) }
