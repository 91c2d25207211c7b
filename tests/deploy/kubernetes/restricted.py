"""Checks the pods of manifests: pod security standard "restricted", image, volumes and the instance's name."""

import pathlib
import sys

import yaml

# What the standard allows; https://kubernetes.io/docs/concepts/security/pod-security-standards/
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
images, claims = set(), set()


def check(name, pod):
    for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
        assert not pod.get(forbidden), f"{name}: {forbidden}"
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] > 0, name
    assert security["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost"), name
    for volume in pod["volumes"]:
        kinds = set(volume) - {"name"}
        assert kinds <= VOLUMES, f"{name}: {kinds}"
        if "persistentVolumeClaim" in volume:
            claims.add(volume["persistentVolumeClaim"]["claimName"])
    containers = pod["containers"] + pod.get("initContainers", [])
    for container in containers:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"]["drop"] == ["ALL"] and "add" not in security["capabilities"], name
        assert not any("hostPort" in port for port in container.get("ports", [])), name
        assert container["resources"]["limits"]["memory"], name
        if container["image"].startswith("livebridge:"):
            images.add(container["image"])
        environment = {entry["name"]: entry for entry in container.get("env", [])}
        if "LIVEBRIDGE_KAFKA_INSTANCE" in environment:
            # Only variables that stand before it are expanded.
            before = list(environment)[: list(environment).index("LIVEBRIDGE_KAFKA_INSTANCE")]
            value = environment["LIVEBRIDGE_KAFKA_INSTANCE"]["value"]
            for variable, path in (("NAMESPACE", "metadata.namespace"), ("POD", "metadata.name")):
                assert f"$({variable})" in value and variable in before, value
                assert environment[variable]["valueFrom"]["fieldRef"]["fieldPath"] == path, value
    print(f"{name}: restricted, {len(containers)} containers")


for path in sys.argv[1:]:
    for manifest in yaml.safe_load_all(pathlib.Path(path).read_text()):
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] in ("StatefulSet", "Job"):
            check(name, manifest["spec"]["template"]["spec"])
        elif manifest["kind"] == "Pod":
            check(name, manifest["spec"])
        for template in manifest["spec"].get("volumeClaimTemplates", []) if "spec" in manifest else []:
            claim = f"{template['metadata']['name']}-{manifest['metadata']['name']}-0"
            assert not claims or claim in claims, f"{claims} are not the claims of {name}"
            claims.add(claim)
assert len(images) == 1, f"different images: {images}"
assert len(claims) == 1, f"the job's claim is none of the StatefulSet's: {claims}"
