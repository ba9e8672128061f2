"""The only shared training code: phases, step schedule, sampler, EMA, preemption, recipes, the run itself."""
