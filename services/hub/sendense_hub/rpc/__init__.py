# SPDX-License-Identifier: Apache-2.0
"""The hub's gRPC services: check requests, call what does the work, answer."""
