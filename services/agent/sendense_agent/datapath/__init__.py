# SPDX-License-Identifier: Apache-2.0
"""Copies disks: the source by nbdkit, the mover with libnbd."""
