# SPDX-License-Identifier: Apache-2.0
"""Sendense's credentials service: keeps vCenter passwords, and is the only place that can decrypt them."""
