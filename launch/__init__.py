"""Start the ranks of a job and give them something to do: the `tokenfabric` command.

`job` says what to run (pure), `torchrun` starts it, `rank` is what every rank executes, `recipes`
are the jobs themselves. Recipes know neither how they were started nor where their output goes.
"""
