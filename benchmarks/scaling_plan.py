"""What a training over many machines should reach, on paper: no process is started and no torch is imported.

A step takes the computing time of one process and the time to average the gradients. Within a machine they are summed
over its own links; then every machine sends and receives 2 (n - 1) / n of the gradients over its network (ring
all-reduce), in 2 (n - 1) rounds that wait for the latency once each. Nothing of it is counted as hidden behind the
backward pass, though DDP hides a part: the figures are on the safe side.

    python benchmarks/scaling_plan.py --parameters 13e6 --step 0.1 --gpus 8 --network-gbps 400
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One machine type and one model.

    Attributes:
        parameters: Numbers whose gradients are averaged in a step.
        step: Seconds of computing a step, in one process alone.
        gpus: Processes of a machine.
        network: Bytes a second in and out of a machine (both at once).
        inside: Bytes a second between the processes of a machine.
        latency: Seconds of a round over the network.
        reductions: All-reduces a step (a discriminator and a generator step are two).
    """

    parameters: float
    step: float
    gpus: int
    network: float
    inside: float
    latency: float = 20e-6
    reductions: int = 1

    def exchange(self, machines: int) -> float:
        """Seconds to average the gradients over ``machines``."""
        size = 4.0 * self.parameters  # float32
        within = 2 * (self.gpus - 1) / self.gpus * size / self.inside if self.gpus > 1 else 0.0
        across = 2 * (machines - 1) / machines * size / self.network
        return within + across + self.reductions * 2 * (machines - 1) * self.latency

    def efficiency(self, machines: int) -> float:
        """Pictures a second a process, of those that it makes alone."""
        return self.step / (self.step + self.exchange(machines))


def table(plan: Plan, machines: Sequence[int]) -> str:
    """Markdown."""
    lines = ["| machines | processes | exchange a step | efficiency | speed-up |", "|---:|---:|---:|---:|---:|"]
    for n in machines:
        share = plan.efficiency(n)
        count = n * plan.gpus
        lines.append(f"| {n} | {count} | {1e3 * plan.exchange(n):.1f} ms | {share:.0%} | {share * count:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, required=True)
    parser.add_argument("--step", type=float, required=True, help="seconds of a step in one process alone")
    parser.add_argument("--gpus", type=int, default=8, help="processes a machine")
    parser.add_argument("--network-gbps", type=float, default=400.0, help="gigabits a second of a machine's network")
    parser.add_argument("--inside-gbps", type=float, default=2400.0, help="gigabits a second within a machine")
    parser.add_argument("--use", type=float, default=0.7, help="part of the nominal rates that is reached")
    parser.add_argument("--reductions", type=int, default=2)
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    a = parser.parse_args()
    rate = 1e9 / 8 * a.use
    plan = Plan(a.parameters, a.step, a.gpus, a.network_gbps * rate, a.inside_gbps * rate, reductions=a.reductions)
    print(table(plan, a.machines))


if __name__ == "__main__":
    main()
