"""The inference data plane, its own process: request, identity, policy, route, replica, meter, ledger."""
