# SPDX-License-Identifier: Apache-2.0
"""The vCenter, by pyvmomi: sessions, snapshots, changed areas."""
