# SPDX-License-Identifier: Apache-2.0
"""What the agent calls at the centre."""
