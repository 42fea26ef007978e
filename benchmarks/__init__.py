"""Speed of the project's code compared with peers that do the same work: python -m benchmarks."""

import os

# OpenMP reads this when torch is imported. The runner sets it too.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
