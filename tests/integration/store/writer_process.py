"""A writer to be killed: commits batches for ever, and prints each batch's end once acknowledged."""

import sys

from moulin.store.opening import open_store
from tests.conformance import store_samples as sample

JOBS = 7

if __name__ == "__main__":
    store = open_store(sys.argv[1])
    epoch = store.open_epoch()
    last = store.last_sequence()
    print(last, flush=True)
    while True:
        store.commit(sample.job_batch(epoch, last + 1, JOBS))
        last += JOBS
        print(last, flush=True)
