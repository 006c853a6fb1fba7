"""How long the mutual information of two activations takes beside scikit-learn's `mutual_info_score`.

Both get the same bfloat16 codes, one thread, the fastest of some runs taken in turn; the last row is a sample of 512
tokens through a head of 152k tokens, with `--head` also for scikit-learn (minutes, and 6 GB).

    python tests/benchmarks/mutual_information_speed.py
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from sklearn.metrics import mutual_info_score

from merging.mutual_information import mutual_information

SIZES = {  # tokens, channels
    "a layer of 1536 channels": (150, 1536),
    "a layer of 4096 channels": (512, 4096),
    "a layer of 5120 channels": (2000, 5120),
    "a head of 152k tokens": (512, 152_064),
}
NOISE = 0.3  # of the second activation, relative to the first


def seconds(function, *arguments) -> tuple[float, float]:
    started = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", action="store_true", help="time scikit-learn on the head too")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    mutual_information(torch.ones(1), torch.ones(1))  # compiled before it is timed
    print("| activations | pairs | ours, s | scikit-learn, s | ratio | difference |\n|---|---|---|---|---|---|")
    for label, (tokens, channels) in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(tokens * channels, generator=generator)
        b = torch.randn(tokens * channels, generator=generator).mul_(NOISE).add_(a).bfloat16()
        a = a.bfloat16()
        codes = [values.view(torch.uint16).numpy() for values in (a, b)]
        whole = channels < 100_000 or options.head
        runs = options.runs if channels < 100_000 else 1
        ours, theirs = [], []
        for _ in range(runs):
            ours.append(seconds(mutual_information, a, b))
            if whole:
                theirs.append(seconds(mutual_info_score, *codes))
        mine = min(ours)
        row = f"| {label} | {len(a) / 1e6:.1f} M | {mine[0]:.4f} |"
        if theirs:
            other = min(theirs)
            print(f"{row} {other[0]:.4f} | {other[0] / mine[0]:.1f} | {abs(other[1] - mine[1]):.1e} |")
        else:
            print(f"{row} | | |")


if __name__ == "__main__":
    main()
