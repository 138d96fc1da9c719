# SPDX-License-Identifier: Apache-2.0
"""Translates the wire: one servicer per audience. Rules live in the vault and the domain."""
