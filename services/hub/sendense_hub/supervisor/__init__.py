# SPDX-License-Identifier: Apache-2.0
"""The hub's first process: owns the SSH listener, starts and watches the API and the gateways.

Holds no catalog and serves no calls: what can fail is in its children, which it starts again.
"""

from sendense_hub.supervisor.supervisor import SupervisorConfig, supervise

__all__ = ["SupervisorConfig", "supervise"]
