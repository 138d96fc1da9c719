# SPDX-License-Identifier: Apache-2.0
"""A vCenter to test and demonstrate with: real protocols, simulated machines."""
