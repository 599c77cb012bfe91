"""Submit a job from Python, follow it, and read its receipts. Run it where `moulin up` runs."""

import sys
import time

from moulin.domain.units import format_euros
from moulin.domain.workload import Resources, TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.sdk import Moulin

spec = WorkloadSpec(
    kind=WorkloadKind.JOB,
    name="from-python",
    resources=Resources(cpu_milli=500, memory_bytes=100 * 10**6),
    task=TaskTemplate(command=("sh", "-c", "echo grinding; sleep 2; echo flour")),
    time_limit_s=60,
)

with Moulin() as client:  # finds .moulin/credentials.json here, or MOULIN_URL and MOULIN_API_KEY
    trial = client.workloads.try_out(spec)
    print(
        f"would start on {', '.join(trial.nodes)} for at most {format_euros(trial.reserved_neur)} €"
    )

    job = client.workloads.submit(spec)
    for piece in client.workloads.follow(job.id):
        sys.stdout.write(piece.decode())
    job = client.workloads.wait(job.id)
    print(f"{job.name} {job.state}")

    # Receipts come when the metering interval closes.
    while not (page := client.receipts.page(workload=job.id)).items:
        time.sleep(0.2)
    for receipt in page.items:
        used = receipt.usage
        print(
            f"{used.energy_mj} mJ, class {used.energy_quality}, "
            f"±{used.energy_uncertainty_ppm / 10_000:g} %, {receipt.charge.amount_neur} n€, "
            f"zone {used.zone}"
        )
