"""Shows `gcloud` commands and runs them, or only shows them. Gives remedies for their errors."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from bert_fast import BadInput


class NotFound(Exception):
    """The resource does not exist."""


class NoCapacity(Exception):
    """There is no free TPU of this type in the zone now. Trying again later may help."""


# What gcloud prints (a pattern), and what to do about it.
REMEDIES = (
    (
        r"SERVICE_DISABLED|has not been used in project|API \[?tpu\.googleapis\.com\]? (is )?not enabled",
        "enable the API: gcloud services enable tpu.googleapis.com --project={project}",
    ),
    (
        r"[Qq]uota",
        "ask for more quota of this TPU type in {zone}, on demand or preemptible (spot) as the task says, at "
        "https://console.cloud.google.com/iam-admin/quotas?project={project}; or take a smaller type",
    ),
    (
        r"active account|gcloud auth login|[Rr]eauthentication|invalid_grant",
        "log in: gcloud auth login",
    ),
    (
        r"PERMISSION_DENIED|does not have permission|[Pp]ermission .*denied",
        "your account needs the roles tpu.admin, iam.serviceAccountUser and storage.objectAdmin in {project}",
    ),
    (
        r"[Rr]untime.?version|software version",
        "list the versions: gcloud compute tpus tpu-vm versions list --zone={zone} --project={project}; "
        "remove `runtime` from the task to use the type's default",
    ),
    (
        r"[Aa]ccelerator.?[Tt]ype|is not supported in|[Uu]nsupported.*type",
        "list the zone's types: gcloud compute tpus tpu-vm accelerator-types list --zone={zone} --project={project}",
    ),
    (r"ALREADY_EXISTS|already exists", "it may have been created a moment ago: check `status`"),
)
ABSENT = r"NOT_FOUND|was not found|matched no objects"
CAPACITY = r"no more capacity|[Ii]nsufficient capacity|not enough (resources|capacity)|[Ss]tockout|STOCKOUT"


class Gcloud:
    """Runs commands. Each is shown on stderr first, as a line that a shell could run."""

    def __init__(self, project: str, zone: str):
        self.words = {"project": project, "zone": zone}

    def __call__(self, command: Sequence[str], shown: bool = False) -> str:
        """Runs a command and returns what it prints on stdout. shown: print that for the user instead of returning it.

        Raises NotFound or NoCapacity with the command's message, or BadInput with a remedy.
        """
        if shutil.which(command[0]) is None:
            raise BadInput(
                f"{command[0]} is not installed: see https://cloud.google.com/sdk/docs/install (Cloud Shell has it)"
                if command[0] == "gcloud"
                else f"{command[0]} is not installed: it is needed to run {shlex.join(command)}"
            )
        print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
        said = []
        with tempfile.TemporaryFile("w+") as output:
            where = None if shown else output
            with subprocess.Popen(command, text=True, stdout=where, stderr=subprocess.PIPE) as process:
                for line in process.stderr or ():
                    said.append(line)
                    print(line, end="", file=sys.stderr, flush=True)
            output.seek(0)
            printed = output.read()
        if process.returncode == 0:
            return printed
        raise self.problem(command, process.returncode, "".join(said) + printed)

    def problem(self, command: Sequence[str], code: int, said: str) -> Exception:
        """The exception for a command that failed."""
        if re.search(CAPACITY, said):
            return NoCapacity(said.strip())
        remedy = next((text for pattern, text in REMEDIES if re.search(pattern, said)), "")
        if not remedy and re.search(ABSENT, said):
            return NotFound(said.strip())
        remedy = remedy.format(**self.words) if remedy else "see its message above"
        return BadInput(f"{shlex.join(command)} failed with exit code {code}: {remedy}")


class DryRun(Gcloud):
    """Prints commands on stdout and runs none. Behaves as if each had succeeded."""

    def __init__(self, project: str, zone: str, run: str):
        """run: the assumed state of the run. An empty string means that there is no TPU yet."""
        super().__init__(project, zone)
        self.exists, self.run = bool(run), run

    def __call__(self, command: Sequence[str], shown: bool = False) -> str:
        print(shlex.join(command), flush=True)
        last = command[-1]
        if "describe" in command:
            if not self.exists:
                raise NotFound
            return "ACTIVE" if "queued-resources" in command else "READY"
        if "create" in command or "delete" in command:
            self.exists, self.run = "create" in command, "new"
        elif "vm.sh start" in last:
            self.run = "ended 0"
        elif "vm.sh status" in last:
            return self.run
        return ""
