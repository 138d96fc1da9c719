# SPDX-License-Identifier: Apache-2.0
"""Pure rules: extents, how a disk is copied."""
