"""How long a merge takes beside the raw floor: one thread reading all the inputs and writing one output.

Makes synthetic Llama checkpoints (a base and three experts, bf16) once, then merges them with every method asked for,
each in a process of its own. Times are of the weights, warm cache; hashing, postflight, the card and compiling the
kernels (once on a machine) are not counted, but in the run that says so.

    python tests/benchmarks/merge_speed.py --size 0.5B --folder /var/tmp/mergeflow-benchmark
    python tests/benchmarks/merge_speed.py --mergekit /path/to/venv/bin/mergekit-yaml     # beside mergekit
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

SIZES = {  # layers, hidden, intermediate, heads, key-value heads, vocabulary
    "0.1B": (8, 768, 2048, 12, 4, 32000),
    "0.5B": (24, 1024, 2816, 16, 4, 64000),
    "1.1B": (22, 2048, 5632, 32, 4, 32000),
}
EXPERTS = ["one", "two", "three"]
RUNS = {
    "linear": ("linear", {}, [None]),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.5}, [None]),
    "ties d=0.2": ("ties", {"density": 0.2}, [None]),
    "dare_linear d=0.2": ("dare_linear", {"density": 0.2}, [None]),
    "dare_ties d=0.2": ("dare_ties", {"density": 0.2}, [None]),
    "widen": ("widen", {}, [None]),
    "ties d=0.2, hashed, loaded and run": ("ties", {"density": 0.2}, [None]),
    "task_arithmetic, five omegas": ("task_arithmetic", {"lambda": 0.5}, [0.2, 0.3, 0.4, 0.5, 0.6]),
}


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    layers, hidden, inner, heads, kv, vocabulary = SIZES[size]
    found = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        prefix = f"model.layers.{i}."
        found |= {
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (hidden * kv // heads, hidden),
            prefix + "self_attn.v_proj.weight": (hidden * kv // heads, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    return found


def make_family(folder: Path, size: str) -> None:
    """Write the checkpoints where they are not there yet."""
    import torch

    from merging.tensor_file import Writer

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
    if all((folder / name / "config.json").exists() for name in ["base", *EXPERTS]):
        return
    described = {name: (torch.bfloat16, shape) for name, shape in shapes(size).items()}
    generator = torch.Generator().manual_seed(0)
    writers = {}
    for name in ["base", *EXPERTS]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        writers[name] = Writer(folder / name / "model.safetensors", described)
    for name, (_, shape) in described.items():
        base = torch.randn(shape, generator=generator).mul_(0.02)
        writers["base"].write(name, base.bfloat16())
        for expert in EXPERTS:
            delta = torch.randn(shape, generator=generator).mul_(0.002)
            writers[expert].write(name, delta.add_(base).bfloat16())
    for name, writer in writers.items():
        writer.close()
        (folder / name / "config.json").write_text(json.dumps(config))
    from merging.tensor_file import save_tensors

    modules = {n.removesuffix(".weight"): torch.rand(s[-1]) for n, s in shapes(size).items() if "embed" not in n}
    save_tensors(folder / "statistics.safetensors", modules)


def floor(folder: Path, outputs: int = 1) -> float:
    """Seconds one thread takes to read all inputs and write `outputs` copies of one."""
    buffer = bytearray(16 << 20)
    target = folder / "floor.bin"
    started = time.perf_counter()
    for name in ["base", *EXPERTS]:
        with open(folder / name / "model.safetensors", "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    size = (folder / "base" / "model.safetensors").stat().st_size
    for _ in range(outputs):
        with open(target, "wb", buffering=0) as file:
            for start in range(0, size, len(buffer)):
                file.write(memoryview(buffer)[: min(len(buffer), size - start)])
        target.unlink()
    return time.perf_counter() - started


def peak_anonymous(stop: threading.Event, found: list[int]) -> None:
    """Keep the highest anonymous memory of this process, in bytes, until told to stop."""
    while not stop.wait(0.02):
        text = Path("/proc/self/status").read_text()
        found[0] = max(found[0], int(text.split("RssAnon:")[1].split()[0]) * 1024)


def child(folder: Path, label: str, rounds: int) -> None:
    """Measure the floor and a merge's weights in turn; print the best of each as JSON.

    In turn and in one process, since the time that fresh pages take varies with what the machine did before.
    """
    from merging import engine
    from merging.recipe import Recipe

    method, parameters, omegas = RUNS[label]
    whole = label.endswith("run")
    if not whole:
        engine.finish = lambda one, *_: one.folder.discard()
    recipes = [
        Recipe.parse(
            {
                "merge_method": method,
                "base_model": "base",
                "models": [{"model": name} for name in EXPERTS],
                "parameters": parameters,
                **({"aim": {"omega": omega}} if omega is not None else {}),
            }
        )
        for omega in omegas
    ]
    names = ["base", *EXPERTS]
    stop, peak = threading.Event(), [0]
    watcher = threading.Thread(target=peak_anonymous, args=(stop, peak))
    watcher.start()
    found = []
    for _ in range(1 if whole else rounds):
        shutil.rmtree(folder / "out", ignore_errors=True)
        floor_seconds = floor(folder, len(omegas))
        before, started = cpu_seconds(), time.perf_counter()
        engine.merge_many(
            recipes,
            [folder / "out" / str(i) for i in range(len(recipes))],
            models={name: folder / name for name in names},
            statistics=folder / "statistics.safetensors",
            digests=None if whole else {name: name for name in names},
        )
        found.append((time.perf_counter() - started, cpu_seconds() - before, floor_seconds))
    stop.set()
    watcher.join()
    seconds, cpu, floors = (min(column) for column in zip(*found, strict=True))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "floor": floors, "memory": peak[0]}))


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def mergekit_seconds(folder: Path, program: str) -> float:
    """CPU-seconds of mergekit's TIES on the same inputs."""
    config = folder / "mergekit.yaml"
    models = [{"model": str(folder / name), "parameters": {"density": 0.2, "weight": 1.0}} for name in EXPERTS]
    config.write_text(
        json.dumps({"merge_method": "ties", "base_model": str(folder / "base"), "dtype": "bfloat16", "models": models})
    )
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    subprocess.run([program, str(config), str(folder / "mergekit-out")], check=True, stdout=subprocess.DEVNULL)
    after = cpu_seconds(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder / "mergekit-out")
    return after - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5B")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"))
    parser.add_argument("--rounds", type=int, default=5, help="merges of a kind, of which the fastest counts")
    parser.add_argument("--only", help="the runs whose name holds this text")
    parser.add_argument("--mergekit", help="a mergekit-yaml program to measure TIES beside")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder / options.size
    if options.child:
        child(folder, options.child, options.rounds)
        return
    make_family(folder, options.size)
    largest = max(a * b for a, b in (s for s in shapes(options.size).values() if len(s) == 2)) * 4
    cores = len(os.sched_getaffinity(0))
    print(f"{options.size}, {cores} cores, best of {options.rounds}.")
    print(f"Bound on anonymous memory: {((len(EXPERTS) + 3) * largest + 400e6) / 1e6:.0f} MB.\n")
    print("| merge | floor, s | seconds | x floor | CPU-seconds | peak anonymous MB |\n|---|---|---|---|---|---|")
    for label in [label for label in RUNS if not options.only or options.only in label]:
        arguments = ["--size", options.size, "--folder", str(options.folder), "--rounds", str(options.rounds)]
        command = [sys.executable, __file__, *arguments, "--child", label]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        found = json.loads(shown.splitlines()[-1])
        ratio = found["seconds"] / found["floor"]
        figures = f"{found['floor']:.2f} | {found['seconds']:.2f} | {ratio:.2f} | {found['cpu']:.2f}"
        print(f"| {label} | {figures} | {found['memory'] / 1e6:.0f} |", flush=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    if options.mergekit:
        print(f"\nmergekit, ties d=0.2: {mergekit_seconds(folder, options.mergekit):.1f} CPU-seconds")


if __name__ == "__main__":
    main()
