"""What SDN and MfM share besides networks: configuration, options, the register of factors, training data.

No method of its own and not in the registry; neither of the two imports the other.
"""
