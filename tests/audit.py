"""pip-audit of the pinned packages; every finding needs an answer in tests/audit_answers.toml.

Exit status 0: no finding without an answer. 1: some. 3: a package could not be looked up, as where
only a package index is reachable and not its advisories; then nothing is known of that package.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def pins() -> list[str]:
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    return sorted({line for group in groups.values() for line in group if isinstance(line, str)})


def main() -> None:
    answers = tomllib.loads(Path(__file__).with_name("audit_answers.toml").read_text("utf-8"))
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-f", "json"]
    command += ["--progress-spinner", "off", "--timeout", "20", "-r", "/dev/stdin"]
    done = subprocess.run(command, input="\n".join(pins()), capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        lines = done.stderr.strip().splitlines()
        print(f"no advisories: {lines[-1] if lines else 'pip-audit said nothing'}", file=sys.stderr)
        sys.exit(3)
    open_findings = 0
    for package in packages:
        for finding in package.get("vulns", []):
            answer = answers.get(finding["id"])
            open_findings += answer is None
            text = answer or "NO ANSWER in tests/audit_answers.toml"
            print(f"{package['name']} {package['version']} {finding['id']}: {text}")
    unknown = [package for package in packages if "skip_reason" in package]
    for package in unknown:
        print(f"not looked up: {package['skip_reason']}", file=sys.stderr)
    known = len(packages) - len(unknown)
    print(
        f"{known} of {len(packages)} packages audited, {open_findings} findings without an answer"
    )
    sys.exit(1 if open_findings else 3 if unknown else 0)


if __name__ == "__main__":
    main()
