"""What is collected here: a runtime of 3 GB only where it was asked for, by `make conformance`."""

import os

collect_ignore = [] if os.environ.get("RUNTIME") == "vllm" else ["test_runtime_vllm.py"]
