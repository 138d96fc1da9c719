# SPDX-License-Identifier: Apache-2.0
"""Jobs: what runs, who may see it, and how each one ends."""
