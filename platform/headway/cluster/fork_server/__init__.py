"""Worker processes of a local Ray cluster are forked from one that has loaded torch and transformers already.

Loading them takes seconds of a core, in every process: with a driver, two workers, trials, evaluations and
replicas, most of what a short run does. Here one process a driver does it once, the *parent*. Ray starts a
small *stand-in* where it would start Python, and the stand-in has the parent fork what was asked for.
"""
