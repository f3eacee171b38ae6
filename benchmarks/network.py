"""A model on paper of a step over many GPUs: messages and bytes as the code cuts them, latency and bandwidth of a network.

python -m benchmarks.network [--parameters 100_000_000]

A GPU sends within its machine over NVLink 4 (450 GB/s each way) and to others over its own InfiniBand NDR (400 Gb/s). A message
takes 3.4 us within a machine and 14 us between two, beside its bytes: what NCCL's own model of costs has for its protocol for large
messages. Messages are counted one after the other, which is the worst case: NCCL sends several at once. Sources: benchmarks/README.md.
"""

from __future__ import annotations

import argparse

from gpuopt.distributed.cuts import buckets_of, traffic

GPUS = 8
NVLINK, INFINIBAND = 450e9, 50e9
"""Bytes a second."""
WITHIN, BETWEEN = 3.4e-6, 14e-6
"""Seconds of a message."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    size = parser.parse_args().parameters
    print(f"{size:_} parameters of float32, sums and parameters together\n")
    print("| GPUs | buckets | messages | MB sent | MB a message | MB received at once | latency ms | bytes ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for processes in (8, 16, 32, 64, 128, 256, 512, 1024):
        buckets = buckets_of([size], ["float32"], processes)
        found = traffic(buckets, processes)
        beyond = max(0, processes - GPUS) / (processes - 1)
        latency = beyond * BETWEEN + (1 - beyond) * WITHIN
        seconds = 2 * found.nbytes * max(beyond / INFINIBAND, (1 - beyond) / NVLINK)
        row = (
            processes,
            len(buckets),
            2 * found.messages,
            f"{2e-6 * found.nbytes:.0f}",
            f"{1e-6 * found.nbytes / found.messages:.2f}",
            f"{1e-6 * found.memory:.0f}",
            f"{2e3 * found.messages * latency:.1f}",
            f"{1e3 * seconds:.1f}",
        )
        print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
