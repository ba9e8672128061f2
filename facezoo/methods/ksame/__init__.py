"""k-Same: a face is replaced by the mean of k faces of a gallery. README.md says what is guaranteed and what is not.

Nothing is imported here, so that `config` (options, no torch) can be read alone.
"""
