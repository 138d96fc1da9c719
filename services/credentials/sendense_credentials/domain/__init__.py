# SPDX-License-Identifier: Apache-2.0
"""What the service is about, without any input or output."""
