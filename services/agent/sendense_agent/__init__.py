# SPDX-License-Identifier: Apache-2.0
"""Sendense's agent: one at each site, reaches the vCenters there and copies disks to the hub."""
