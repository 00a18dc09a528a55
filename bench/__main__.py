"""`python -m bench`: every bench of this folder, one after the other; each runs alone as `python -m bench.<name>`."""

import argparse
import importlib
from pathlib import Path

import torch

from bench.table import table


def benches() -> list:
    """The modules of this folder that have a TITLE and a run(quick), by title."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("__"))
    modules = [importlib.import_module(f"bench.{name}") for name in names]
    return sorted((m for m in modules if hasattr(m, "TITLE") and hasattr(m, "run")), key=lambda m: m.TITLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of each only, to see that they run")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for bench in benches():
        print(f"{bench.TITLE}\n", flush=True)
        print(f"{table(bench.run(quick=options.quick))}\n", flush=True)


if __name__ == "__main__":
    main()
