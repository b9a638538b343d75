-- append(write, job, token, event): an event of the running attempt.
if done_before(args.job) then
    return { "ok" }
end
if not owns(args.job, args.token) then
    return { "lost" }
end
remember(args.job)
add_event(args.job, args.event)
return { "ok" }
