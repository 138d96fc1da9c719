# SPDX-License-Identifier: Apache-2.0
"""The hub's API process: catalog, jobs, and the services for operators, gateways and spans."""
