"""Jobs while workers and servers are killed: all end, each once, and every image is the one drawn alone.

    python benchmarks/serve/deaths.py --clients 64 --customise 50 --generate 450 --worker-kills 10 --server-kills 3

The short form of this is tests/serve/test_deaths.py.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--customise", type=int, default=50, help="jobs of 5 steps")
    parser.add_argument("--generate", type=int, default=450, help="jobs of 10 steps")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--worker-kills", type=int, default=10)
    parser.add_argument("--server-kills", type=int, default=3)
    asked = parser.parse_args()
    from promptnet import PromptNetPipeline
    from tests.serve.conftest import TINY
    from tests.serve.load import Load, check_jobs, jobs_while_dying
    from tests.serve.processes import served

    load = Load(asked.clients, asked.customise, asked.generate, tuning_steps=5, steps=10)
    pipe = PromptNetPipeline.from_pretrained(TINY, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), asked.workers) as server:
        start_s = time.monotonic()
        jobs = jobs_while_dying(server, load, asked.worker_kills, asked.server_kills)
        print(f"{len(jobs)} jobs ended in {time.monotonic() - start_s:.0f} s")
        check_jobs(server, load, jobs, pipe)
        print("none lost, none twice, every image the one drawn alone")


if __name__ == "__main__":
    main()
