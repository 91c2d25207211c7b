"""Checks docker-compose.yml: mounted files exist, and ports are published on localhost only."""

import pathlib

import yaml

compose = yaml.safe_load(pathlib.Path("docker-compose.yml").read_text())
volumes = set(compose["volumes"])
for name, service in compose["services"].items():
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert pathlib.Path(source).is_file(), f"{name} mounts {source}, which is not there"
            if source.endswith((".yml", ".yaml")):
                assert yaml.safe_load(pathlib.Path(source).read_text()), source
        else:
            assert source in volumes, f"{name} mounts the volume {source}, which is not declared"
            volumes.discard(source)
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), f"{name} publishes {port} outside localhost"
    if "build" in service:
        assert pathlib.Path(service["build"]["dockerfile"]).is_file()
    else:
        assert "healthcheck" in service, f"{name} has no health check"
        assert ":" in service["image"], f"{name} has no version"
assert not volumes, f"unused volumes: {volumes}"
print(len(compose["services"]), "services")
