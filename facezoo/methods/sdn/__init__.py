"""SDN: Secure Dual Network (Pan, Chen, Wu, Electronics 2024, 13, 4398)."""
