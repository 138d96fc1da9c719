# SPDX-License-Identifier: Apache-2.0
"""The hub's end of the tunnel: SSH connections of agents, authorized by identity. Moves bytes, knows no jobs.

Run as `python -m sendense_hub.gateway` by the supervisor, several at a time.
"""
