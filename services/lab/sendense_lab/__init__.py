# SPDX-License-Identifier: Apache-2.0
"""A vCenter to test and demonstrate with: real protocols, simulated machines."""

from sendense_lab.client import LabClient, LabError, LabMachine

__all__ = ["LabClient", "LabError", "LabMachine"]
