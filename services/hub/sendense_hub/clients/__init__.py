# SPDX-License-Identifier: Apache-2.0
"""What the hub calls: the credentials service, and agents through their reverse sockets."""
