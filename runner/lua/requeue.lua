-- requeue(write, job, token, requeued, cancelled): an attempt that its worker gives back through no fault of its own.
if done_before(args.job) then
    return record(args.job)
end
if not owns(args.job, args.token) then
    return { "lost" }
end
local status, answer = give_back(args.job)
if status then
    return { status, answer }
end
return record(args.job)
