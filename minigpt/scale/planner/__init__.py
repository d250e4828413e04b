"""The planner: what a model costs to train and to run on a cluster, by arithmetic alone; no torch, no GPU, no weights.

Read in this order: hardware.py (what is assumed), flops.py, memory.py, links.py (what travels), step.py (one training
step in one layout), search.py (all layouts), chinchilla.py (how large a model and a batch for some compute),
published.py (the plans beside runs that took place).
"""
