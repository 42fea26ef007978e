"""How quick the project's code is, beside peers that do the same work: python -m benchmarks."""

import os

# Before torch is imported, as the runner sets it.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
