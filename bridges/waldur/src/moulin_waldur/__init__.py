"""Lets Waldur sell what a Moulin has: orders become projects, members get keys, receipts are the usage."""
