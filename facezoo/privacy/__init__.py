"""Differential privacy: mechanisms over tensors, sensitivities that are bounds, accounting, audits, and a ledger.

| module | what | imports torch |
|---|---|---|
| `randomness` | exact sampling from integers, out of the operating system's randomness or (for tests) a seed | no |
| `sensitivity` | how far a query can move: bounds, clipping, and the empirical figure, marked as no bound | yes |
| `mechanisms` | Laplace, analytic Gaussian, exponential, randomised response | yes |
| `accounting` | composition, Poisson amplification, groups; PLD and RDP through Google's dp-accounting | no |
| `audit` | statistical checks that catch a wrong noise scale | no |
| `guarantee` | what a method promises, in numbers and in words | no |
| `ledger` | a budget for each person over a folder of pictures | no |

docs/privacy.md says in plain words what is guaranteed and what is not. Nothing is imported here, so that the command
line can read the ledger without torch.
"""
