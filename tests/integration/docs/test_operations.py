# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md: the images start as they should, and a site is enrolled as the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from tests.integration.docs.images import Images
from tests.integration.docs.page import ROOT, commands, run, section
from tests.unit.packaging.containers import SERVICES

from sendense_cli.exits import Exit

pytestmark = pytest.mark.integration

PAGE = "docs/operations.md"
PAGES = [
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/operations.md",
    "docs/repository-format.md",
    "protos/README.md",
    "services/cli/README.md",
    "services/common/README.md",
    "services/credentials/README.md",
]
_IMPORT_ALL = """
import importlib, pathlib, sys
source = pathlib.Path(sys.argv[1])
for file in sorted(source.rglob("*.py")):
    parts = file.relative_to(source).with_suffix("").parts
    if parts[-1] != "__main__" and "migrations" not in parts:
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
ours = [each for each in sys.modules.values() if (each.__name__ or "").startswith("sendense")]
assert all(each.__file__ is None or each.__file__.startswith(str(source)) for each in ours)
print(len(ours))
"""


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_holds_all_that_its_code_imports(service: str, short_tmp: Path):
    images = Images(short_tmp)
    source = images.here(service, "/opt/sendense/src")
    done = images.run(service, [str(images.python), "-c", _IMPORT_ALL, source])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


async def test_a_site_is_enrolled_as_the_page_says(short_tmp: Path):
    images = Images(short_tmp)
    before = [asyncio.to_thread(images.run, each, images.health(each)) for each in SERVICES]
    assert [each.returncode for each in await asyncio.gather(*before)] == [1, 1, 1]
    (key_file,) = re.findall(r"init-key --state /tmp/unused (--key-file \S+)", (ROOT / PAGE).read_text())
    command = ["init-key", f"--state={short_tmp}/unused", *images.here("credentials", key_file).split()]
    made = images.run("credentials", images.command("credentials", *command))
    assert made.returncode == 0, made.stderr
    async with images.running("credentials"), images.running("hub"):
        assert "sendense.hub.v1.SiteService" in _grpcurl(images.state / "run/hub/api.sock")
        assert "CredentialService" in _grpcurl(images.state / "run/cred/operators/operator.sock")
        endpoint_file = images.state / "run/hub/ssh-endpoint"
        endpoint = endpoint_file.read_text().strip()
        cli = [str(images.python), "-m", "sendense_cli.main", "agent"]

        def centre(*words: str) -> dict[str, Any]:
            done = images.run("credentials", [*cli, *words, "--json", f"--state={images.state}"])
            assert done.returncode == 0, done.stderr
            return dict(json.loads(done.stdout))

        invited = centre("invite", "paris", "--hub", endpoint)
        assert _options(section(PAGE, "Enrol a site")) == _options(invited["command"])
        line = images.command("agent", *invited["command"].split()[1:])
        waiting = images.run("agent", [*line, "--no-wait"])
        assert waiting.returncode == 0, waiting.stderr
        (fingerprint,) = re.findall(r"^ +(SHA256:\S+)$", waiting.stdout, re.MULTILINE)
        centre("approve", "paris", "--fingerprint", fingerprint)
        assert images.run("agent", line).returncode == 0
        async with images.running("agent"):
            assert "sendense.agent.v1.AgentService" in _grpcurl(images.state / "run/agent/grpc.sock")
            async with asyncio.timeout(60):
                while await asyncio.to_thread(_doctor_says, images) != "CHECK_STATUS_OK":
                    pass  # each time is a process that takes a while
        endpoint_file.unlink()
        assert images.run("hub", images.health("hub")).returncode == 1, "nobody could dial it"


def _options(text: str) -> list[str]:
    """Of the line to paste."""
    line = re.findall(r"sendense-agent enroll ((?:[^\n\\]|\\\n)*)", text, re.MULTILINE)[0]
    return re.findall(r"--[a-z-]+", line)


def _grpcurl(socket: Path) -> str:
    """What a person sees of a service, by the commands of protos/README.md."""
    (script,) = commands("protos/README.md", "Where they are served")
    done = run(script, SOCKET=socket, PATH=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert '"status": "SERVING"' in done.stdout
    return done.stdout


def _doctor_says(images: Images) -> str:
    """What `sendense doctor` thinks of the site."""
    doctor = [str(images.python), "-m", "sendense_cli.main", "doctor", "--json", f"--state={images.state}"]
    checks = json.loads(images.run("credentials", doctor).stdout)["checks"]
    found = [str(each["status"]) for each in checks if each["name"] == "site.paris"]
    return found[0]


def test_the_page_has_all_exit_codes():
    rows = re.findall(r"^\| (\d+) \| \S", section(PAGE, "Exit codes"), re.MULTILINE)
    assert [int(code) for code in rows] == [code.value for code in Exit]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str):
    text = (ROOT / page).read_text()
    assert text.startswith("<!-- SPDX-License-Identifier: Apache-2.0 -->\n# ")
    links = re.findall(r"\]\(([^):]*)\)", text)
    missing = [link for link in links if not _is_there((ROOT / page).parent, page, link)]
    assert not missing


def _is_there(folder: Path, page: str, link: str) -> bool:
    """Whether a link within the repository leads to a file, and to a heading of it if it names one."""
    name, _, anchor = link.partition("#")
    file = folder / name if name else ROOT / page
    if not file.exists() or not anchor:
        return file.exists()
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
