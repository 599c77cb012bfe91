"""From usages to money and evidence: prices, balanced entries, leaves and a signed tree head.

One shard of evidence per site. The frontiers kept here are of the durable log; a draft that is
not committed leaves them as they were: the cycle takes over the draft's after the commit.
"""

from collections.abc import Sequence

from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.events import ChargedUsage, UsagesCharged
from moulin.domain.factory import ObjectKind, Site
from moulin.domain.usage import Charge, Receipt, Usage
from moulin.domain.views import ReceiptView
from moulin.ledger import (
    Issue,
    VerifierKey,
    checkpoint_text,
    issue,
    make_salt,
    post,
    price,
    signed_note,
)
from moulin.ports.store import Checkpoint, Leaf, TreeNode


def charge(plane: Plane, draft: Draft, usages: Sequence[Usage]) -> None:
    """Price usages and draft their entries, receipts, leaves and the new tree heads, by site."""
    by_site: dict[str, list[Usage]] = {}
    for usage in usages:
        by_site.setdefault(usage.site, []).append(usage)
    for name in sorted(by_site):
        declared = draft.books.declared.get((ObjectKind.SITE, name))
        site = declared.value if declared else None
        owner = site if isinstance(site, Site) else Site(name=name, country="")
        _charge_site(plane, draft, owner, by_site[name])


def _charge_site(plane: Plane, draft: Draft, site: Site, usages: Sequence[Usage]) -> None:
    price_books = draft.books.price_books()
    charged = [(usage, price(usage, price_books, site)) for usage in usages]
    origin = plane.evidence.origin(site.name)
    issued = issue(
        draft.frontiers.get(origin) or plane.evidence.frontier(origin),
        origin=origin,
        charged=charged,
        salts=[make_salt(plane.ports.ids.entropy) for _ in charged],
        operator_secret=plane.ports.signer.operator_secret,
    )
    draft.frontiers[origin] = issued.frontier
    draft.entries.extend(post(cost, usage) for usage, cost in charged)
    _draft_evidence(plane, draft, issued)
    draft.append(
        UsagesCharged(
            origin=origin,
            items=tuple(
                _charged(usage, cost, receipt)
                for (usage, cost), receipt in zip(charged, issued.receipts, strict=True)
            ),
            tree_size=issued.head.size,
            root=issued.head.root.hex(),
        )
    )


def _draft_evidence(plane: Plane, draft: Draft, issued: Issue) -> None:
    for receipt, leaf_hash in zip(issued.receipts, issued.leaf_hashes, strict=True):
        draft.receipts.append(_view(receipt, draft.now_ns))
        draft.leaves.append(Leaf(origin=receipt.origin, index=receipt.index, leaf_hash=leaf_hash))
    draft.nodes.extend(
        TreeNode(origin=issued.head.origin, level=level, index=index, node_hash=digest)
        for level, index, digest in issued.nodes
    )
    text = checkpoint_text(issued.head)
    signer = plane.ports.signer
    key = VerifierKey(name=signer.key_name, public_key=signer.public_key)
    note = signed_note(text, key, signer.sign(text.encode()))
    draft.checkpoints.append(
        Checkpoint(
            origin=issued.head.origin, tree_size=issued.head.size, note=note, at_ns=draft.now_ns
        )
    )


def _charged(usage: Usage, cost: Charge, receipt: Receipt) -> ChargedUsage:
    return ChargedUsage(
        usage=usage.id,
        receipt=receipt.id,
        project=usage.project,
        workload=usage.request or usage.workload,
        amount_neur=cost.amount_neur,
        leaf_index=receipt.index,
        is_from_grant=bool(usage.request),
    )


def _view(receipt: Receipt, at_ns: int) -> ReceiptView:
    return ReceiptView(
        id=receipt.id,
        organisation=receipt.usage.organisation,
        project=receipt.usage.project,
        usage=receipt.usage,
        charge=receipt.charge,
        origin=receipt.origin,
        leaf_index=receipt.index,
        issued_at_ns=at_ns,
        salt_hex=receipt.salt.hex(),
    )
