"""Forks the worker processes of a local Ray cluster from one that has loaded torch and transformers already.

Loading them takes seconds of a core in every process: with a driver, two workers, trials, evaluations and
replicas, most of what a short run does. Here one process per driver, the *fork server*, loads them once. Ray
starts a small *fork client* instead of Python, and the client asks the fork server to fork the process.
"""
