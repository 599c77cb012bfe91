"""One pass of the site agent's own processors, run by the agent's environment: `waldur_drive.py CONFIG PASS`."""

import sys

from waldur_site_agent.common import processors, utils

PASSES = {
    "orders": (processors.OfferingOrderProcessor, "order_processing_backend"),
    "members": (processors.OfferingMembershipProcessor, "membership_sync_backend"),
    "usage": (processors.OfferingReportProcessor, "reporting_backend"),
}


def main() -> None:
    configuration = utils.init_configuration_from_file(sys.argv[1])
    (offering,) = configuration.offerings
    kind, key = PASSES[sys.argv[2]]
    backend, version = utils.get_backend_for_offering(offering, key)
    client = utils.get_client_for_offering(offering)
    kind(
        offering, client, "UTC", resource_backend=backend, resource_backend_version=version
    ).process_offering()


if __name__ == "__main__":
    main()
