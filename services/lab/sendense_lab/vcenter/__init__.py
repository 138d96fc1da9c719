# SPDX-License-Identifier: Apache-2.0
"""The simulated vCenter: SOAP on pyvmomi's types over TLS; disks, snapshots and change tracking work."""
