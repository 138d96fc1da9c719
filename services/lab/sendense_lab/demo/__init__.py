# SPDX-License-Identifier: Apache-2.0
"""The demonstration: backups of a simulated VM by the real services, proved by restores."""

from sendense_lab.demo.command_line import DemoError
from sendense_lab.demo.guest import GuestDisk
from sendense_lab.demo.story import DemoOptions, run_demo

__all__ = ["DemoError", "DemoOptions", "GuestDisk", "run_demo"]
