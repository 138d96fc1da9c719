# SPDX-License-Identifier: Apache-2.0
"""The mover: a process that copies one disk over an SSH connection of its own. Alone in using libnbd."""
