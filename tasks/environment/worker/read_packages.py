"""Print what is installed: one JSON document of distributions and the interpreter's marker values (PEP 508).

Runs inside the environment, standard library only: `python -I read_packages.py`.
"""

import importlib.metadata
import json
import os
import platform
import sys
import sysconfig

CODE = (".py", ".so")


def main() -> int:
    found = {}
    owners = {}  # for each code file: which distribution installed it, with which content
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and name not in found:  # of two copies, the first on the path is imported
            for file in distribution.files or ():
                if file.suffix in CODE and file.hash:
                    owners.setdefault(imported_as(file), {})[name] = file.hash.value
            found[name] = {
                "name": name,
                "version": distribution.version,
                "requires": distribution.requires or [],
                "modules": modules_of(distribution),
            }
    document = {
        "distributions": sorted(found.values(), key=lambda d: d["name"]),
        "markers": markers(),
        "shared": shared_files(owners),
        "site_packages": sysconfig.get_path("platlib"),
    }
    json.dump(document, sys.stdout)
    return 0


def imported_as(file: "importlib.metadata.PackagePath") -> str:
    """A module `x.py` and a package `x/__init__.py` share one import name: the package hides the module."""
    return f"{file.stem}/__init__.py" if len(file.parts) == 1 and file.suffix == ".py" else str(file)


def shared_files(owners: "dict[str, dict[str, str]]") -> "list[dict[str, object]]":
    """One file for each set of distributions that installed different files under the same name."""
    found = {}
    for path, hashes in sorted(owners.items()):
        if len(set(hashes.values())) > 1:
            entry = {"path": path, "owners": sorted(hashes), "count": 0}
            found.setdefault(tuple(sorted(hashes)), entry)["count"] += 1
    return list(found.values())


def modules_of(distribution: importlib.metadata.Distribution) -> "list[str]":
    """Top-level modules, from the list of installed files."""
    modules = set()
    for file in distribution.files or ():
        if len(file.parts) == 1 and file.suffix == ".py":
            modules.add(file.stem)
        elif len(file.parts) == 1 and file.suffix == ".so":
            modules.add(file.name.partition(".")[0])
        elif len(file.parts) == 2 and file.name == "__init__.py":
            modules.add(file.parts[0])
    return sorted(module for module in modules if module.isidentifier())


def markers() -> "dict[str, str]":
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": platform.python_version(),
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }


if __name__ == "__main__":
    sys.exit(main())
