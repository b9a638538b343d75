-- position(job): 1 for the next to run; nothing where it is not queued.
return { "ok", position(args.job) }
