"""Shared by the examples.

options      command lines: one sentence for an option that cannot be
output       the folder that an example writes to, and its figures
runs         runs of `jaxrnn.training.fit`, begun anew or resumed
curves       the figure of a training
curriculum   training on sequences that grow longer
memory       training of several seeds at once on a memory task
"""
