-- finish(write, job, token, state, fields, event): the end of a job, told by the attempt that holds it.
if done_before(args.job) then
    return record(args.job)
end
if not owns(args.job, args.token) then
    return { "lost" }
end
if not may_move(args.job, args.state) then
    return { "illegal", field(args.job, "state") }
end
remember(args.job)
set_fields(args.job, args.fields)
move(args.job, args.state, args.event)
return record(args.job)
