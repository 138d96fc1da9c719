# SPDX-License-Identifier: Apache-2.0
"""`sendense-lab accept`: scenarios, as far as they can be provoked, at a real vCenter."""

from sendense_lab.accept.checks import CHECKS
from sendense_lab.accept.run import AcceptOptions, run_accept
from sendense_lab.accept.site import Address
from sendense_lab.accept.stand import AcceptError
from sendense_lab.accept.table import as_table

__all__ = ["CHECKS", "AcceptError", "AcceptOptions", "Address", "as_table", "run_accept"]
