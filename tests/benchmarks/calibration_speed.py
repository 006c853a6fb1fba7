"""How long calibration takes beside the plain forward of the same model on the same blocks, and what memory it needs.

Makes a synthetic Llama checkpoint (bf16) once. The times come from one process that runs the plain forward, which has
the whole model in memory already, and both ways of calibrating in turn; those read the model each time. Memory is
anonymous, and each way's is from a process of its own; the most it may be is two decoder layers, the embedding and the
hidden states.

    python tests/benchmarks/calibration_speed.py --size 0.5B --folder /var/tmp/mergeflow-benchmark
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

from merge_speed import SIZES, peak_anonymous, shapes

LENGTH = 512  # tokens in a block


def make_model(folder: Path, size: str) -> Path:
    """The checkpoint's folder, written where it is not there yet."""
    import torch

    from merging.tensor_file import Writer

    folder = folder / size
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    layers, hidden, inner, heads, kv, vocabulary = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    described = {name: (torch.bfloat16, shape) for name, shape in shapes(size).items()}
    generator = torch.Generator().manual_seed(0)
    with Writer(folder / "model.safetensors", described) as writer:
        for name, (_, shape) in described.items():
            writer.write(name, torch.randn(shape, generator=generator).mul_(0.02).bfloat16())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def token_ids(size: str, blocks: int):
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, SIZES[size][5], (blocks, LENGTH), generator=generator)


def run_calibration(folder: Path, ids, dtype: str, streamed: bool) -> None:
    import torch

    from merging.calibration import calibrate

    out = folder / f"{'streamed' if streamed else 'whole'}.safetensors"
    # a digest of the model's files costs a reading of them, and is known in a study
    calibrate(folder, ids, out, dtype=getattr(torch, dtype), streamed=streamed, metadata={"model": "synthetic"})


def times(folder: Path, size: str, dtype: str, blocks: int, rounds: int) -> dict[str, list[float]]:
    """The fewest seconds, and seconds of the processors, of each way over `rounds`; one way after another in each."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    ids = token_ids(size, blocks)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def plain(part) -> None:
        with torch.no_grad():
            for block in ids:
                part(block[None], use_cache=False)

    ways = {
        "plain forward": lambda: plain(model),
        "without its head": lambda: plain(model.model),
        "streamed": lambda: run_calibration(folder, ids, dtype, True),
        "whole": lambda: run_calibration(folder, ids, dtype, False),
    }
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started, processors = time.perf_counter(), time.process_time()
            way()
            found[name].append((time.perf_counter() - started, time.process_time() - processors))
    return {name: [min(one) for one in zip(*both, strict=True)] for name, both in found.items()}


def memory(folder: Path, size: str, dtype: str, blocks: int, streamed: bool) -> int:
    """The most anonymous memory, in bytes, that a calibration adds to this process."""
    import transformers

    from merging.mapped_model import MappedModel

    transformers.utils.logging.disable_progress_bar()
    MappedModel(folder)  # what the imports take is not counted
    ids = token_ids(size, blocks)
    before = anonymous()
    stop, found = threading.Event(), [before]
    thread = threading.Thread(target=peak_anonymous, args=(stop, found))
    thread.start()
    run_calibration(folder, ids, dtype, streamed)
    stop.set()
    thread.join()
    return found[0] - before


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def budget(size: str, dtype: str, blocks: int) -> int:
    """Bytes of two layers, the embedding and the hidden states."""
    width = {"float32": 4, "bfloat16": 2}[dtype]
    all_shapes = shapes(size)
    layer = sum(math.prod(shape) for name, shape in all_shapes.items() if ".layers.0." in name)
    embedding = math.prod(all_shapes["model.embed_tokens.weight"])
    return width * (2 * layer + embedding + blocks * LENGTH * SIZES[size][1])


def child(arguments: list[str]):
    """What a process of its own prints as JSON."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="0.5B", choices=SIZES)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/mergeflow-benchmark/calibration"))
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="float32 by default")
    parser.add_argument("--blocks", type=int, default=8, help=f"blocks of {LENGTH} tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; as many as it takes by default")
    parser.add_argument("--measure", choices=["times", "streamed", "whole"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = make_model(given.folder, given.size)
    if given.measure:
        return measure(given, folder)
    print(f"Llama {given.size}, {given.blocks} blocks of {LENGTH} tokens")
    print("| dtype | way | seconds | CPU-seconds | of the plain forward | of it without its head | memory, MB | most |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in given.dtype or ["float32"]:
        options = [f"--{key}={getattr(given, key)}" for key in ("size", "folder", "blocks", "rounds", "threads")]
        seconds = child([*options, f"--dtype={dtype}", "--measure=times"])
        for name, (wall, processors) in seconds.items():
            ratios = [wall / seconds[other][0] for other in ("plain forward", "without its head")]
            cells = [dtype, name, f"{wall:.2f}", f"{processors:.2f}", *(f"{ratio:.2f}" for ratio in ratios), "", ""]
            if name in ("streamed", "whole"):
                cells[-2] = f"{child([*options, f'--dtype={dtype}', f'--measure={name}']) / 1e6:.0f}"
            if name == "streamed":
                cells[-1] = f"{budget(given.size, dtype, given.blocks) / 1e6:.0f}"
            print(f"| {' | '.join(cells)} |", flush=True)
    return None


def measure(given: argparse.Namespace, folder: Path) -> None:
    """What a process of its own finds, as JSON."""
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    settings = folder, given.size, given.dtype[0], given.blocks
    if given.measure == "times":
        print(json.dumps(times(*settings, given.rounds)))
    else:
        print(memory(*settings, given.measure == "streamed"))


if __name__ == "__main__":
    main()
