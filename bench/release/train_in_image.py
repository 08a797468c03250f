"""`loraserve train` in the vLLM image, which has torch; what else it needs is taken from this environment.

train_in_image.py CHECKOUT PACKAGES FILE STACK_FILE WEIGHTS
"""

import os
import sys

if __name__ == "__main__":
    checkout, packages, file, stack_file, weights = sys.argv[1:]
    sys.path.insert(0, checkout)
    sys.path.append(packages)  # the image's own come first: torch is built for them
    os.environ["OMP_NUM_THREADS"] = "1"  # so small a model only waits for a second one
    from loraserve.operator.cli import main

    sys.exit(main(["train", file, "--stack-file", stack_file, "--weights", weights, "--cpu"]))
