"""Charged usages, a key and a small signed log that the ledger's tests share; all fixed values."""

from dataclasses import replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from moulin.domain.factory import EnergyClass, Price, PriceBook, Site
from moulin.domain.ids import AttemptId, OrganisationId, ProjectId, WorkloadId
from moulin.domain.usage import Usage
from moulin.ledger import (
    Frontier,
    VerifierKey,
    checkpoint_text,
    inclusion_proof,
    issue,
    key_name,
    nodes_from_tiles,
    price,
    receipt_file,
    shard_origin,
    signed_note,
)
from tests.unit.ledger.reference import kept

ORIGIN = shard_origin("demo", "lyon")
SECRET = bytes(range(32))
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(100, 132)))
KEY = VerifierKey(name=key_name("demo"), public_key=PRIVATE.public_key().public_bytes_raw())
SITE = Site(name="lyon", country="FR", energy_price_neur_per_kwh=70_000_000)
BOOK = PriceBook(
    name="standard",
    effective_from_ns=0,
    prices=(
        Price(sku="input", meter="tokens_input", unit_price_neur=150_000_000, per=1_000_000),
        Price(sku="output", meter="tokens_output", unit_price_neur=600_000_001, per=1_000_000),
        Price(sku="cpu", meter="cpu_milli_ms", unit_price_neur=40_000_000, per=3_600_000_000),
    ),
)
ASKED = Usage(
    id="use_req_01HF7YAT000000000000000007",
    workload=WorkloadId("end_01HF7YAT000000000000000001"),
    attempt=AttemptId("end_01HF7YAT000000000000000001.u0.g1"),
    organisation=OrganisationId("université"),
    project=ProjectId("chat"),
    zone="lyon-a",
    site="lyon",
    country="FR",
    country_basis="asserted by the operator",
    start_ns=1_700_000_000_000_000_001,
    end_ns=1_700_000_001_500_000_000,
    quantities={"tokens_output": 333, "tokens_input": 2_001},
    subject="qwen2.5-coder-0.5b-instruct",
    model_digest="sha256:" + "ab" * 32,
    request="req_01HF7YAT000000000000000007",
    energy_mj=41_234,
    overhead_mj=6_000,
    energy_method='linear model, "stated"',
    energy_quality=EnergyClass.SPECIFICATION_MODEL,
    energy_uncertainty_ppm=350_000,
    carbon_location_ng=641_418,
    carbon_market_ng=274_893,
    carbon_source="a yearly mean",
    policy_decision="sha256:" + "cd" * 32,
)
JOB = replace(
    ASKED,
    id="use_job_1.u0.g1.n1.0",
    workload=WorkloadId("job_1"),
    attempt=AttemptId("job_1.u0.g1"),
    quantities={"cpu_milli_ms": 2**70},
    subject="",
    model_digest="",
    request="",
    energy_mj=2**80,
    is_estimated=True,
)
FREE = replace(ASKED, id="use_free", quantities={}, energy_mj=0, overhead_mj=0)
USAGES = (ASKED, JOB, FREE)


def is_signed(public_key, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def charged(usages=USAGES):
    return [(usage, price(usage, [BOOK], SITE)) for usage in usages]


def issued(usages=USAGES):
    return issue(
        Frontier(),
        origin=ORIGIN,
        charged=charged(usages),
        salts=[bytes([i]) * 32 for i in range(len(usages))],
        operator_secret=SECRET,
    )


def note_of(head, private=PRIVATE, key=KEY):
    text = checkpoint_text(head)
    return signed_note(text, key, private.sign(text.encode()))


def file_of(index, found=None):
    """Return the receipt file of one of the issued receipts."""
    found = found or issued()
    read = nodes_from_tiles(kept(found.leaf_hashes))
    proof = inclusion_proof(index, found.head.size, read)
    return receipt_file(found.receipts[index], proof, note_of(found.head), KEY)
