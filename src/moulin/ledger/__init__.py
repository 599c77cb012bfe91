"""From usages to money and evidence: charges, balanced entries, the Merkle log and receipts."""
