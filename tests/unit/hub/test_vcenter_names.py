# SPDX-License-Identifier: Apache-2.0
"""Under which name the points of a vCenter are listed after a scan."""

from __future__ import annotations

import pytest

from sendense_hub.domain.vcenter_names import is_known, name_here

pytestmark = pytest.mark.unit

MINE, OTHER = "uuid-1", "uuid-2"


@pytest.mark.parametrize(
    ("known", "name", "is_it_known"),
    [
        ({}, "prod", False),
        ({"prod": MINE}, "prod", True),
        ({"prod": MINE, "a": MINE}, "prod", True),
        ({"prod": ""}, "prod", True),
        ({"vc1": MINE}, "vc1", True),
        ({"vc1": MINE, "b": MINE}, "b", True),
        ({"prod": OTHER, "vc1": MINE}, "vc1", True),
        ({"prod": OTHER}, "prod", False),
        ({"a": OTHER, "b": ""}, "prod", False),
        # The one of the old name was not asked yet: another that claims to be it does not get its points.
        ({"prod": "", "b": MINE}, "prod", True),
    ],
)
def test_points_take_the_name_that_their_vcenter_has_here(
    known: dict[str, str], name: str, is_it_known: bool
) -> None:
    assert name_here(MINE, "prod", known) == name
    assert is_known(MINE, name, known) is is_it_known
