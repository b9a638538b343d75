-- append(write, job, token, fields, event): an event of the running attempt, and what it says of where the job stands.
if done_before(args.job) then
    return { "ok" }
end
if not owns(args.job, args.token) then
    return { "lost" }
end
remember(args.job)
set_fields(args.job, args.fields)
add_event(args.job, args.event)
thin_when_long(args.job)
return { "ok" }
