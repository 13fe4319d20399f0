"""`DeviceProfile`: what is measured, on what, with what; read from ``profiles/*.toml`` or a file of your own."""

from __future__ import annotations

import difflib
import importlib.resources
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwnas.errors import HwnasError, RuntimeMissing, UsageError
from hwnas.measure.ssh import HOST, split_address

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

ENGINE_RUNTIMES = ("tensorrt", "tensorrt_rtx")
"""Runtimes that build engines, in any precision."""

GPU_RUNTIMES = ("onnxruntime-cuda", "onnxruntime-tensorrt", *ENGINE_RUNTIMES)
"""Runtimes that need a GPU."""


class Timing(BaseModel):
    """The timing protocol of a profile (README, "How it measures")."""

    model_config = _STRICT

    min_passes: int = Field(default=12, ge=2, le=10_000)
    max_passes: int = Field(default=40, ge=2, le=10_000)
    runs: int = Field(default=5, ge=1, le=1_000)
    min_run_ms: float = Field(default=0.25, gt=0, le=1_000)
    target_error: float = Field(default=0.01, gt=0, lt=1)
    visits_per_load: int = Field(default=0, ge=0, le=10_000)
    timeout_s: float = Field(default=60.0, gt=0, le=3_600)


class Builder(BaseModel):
    """How TensorRT builds engines (`hwnas.measure.runtimes.tensorrt_build.BuildOptions`)."""

    model_config = _STRICT

    workspace_mib: int = Field(default=2048, ge=1, le=1 << 20)
    optimisation_level: int = Field(default=3, ge=0, le=5)
    tf32: bool = False


class DeviceProfile(BaseModel):
    """A device, the runtime that deploys on it, and how it is timed. Bound into every table made with it.

    Attributes:
        threads: intra-operator threads; 0 means all cores (`thread_count` resolves it).
        batch_size: images in one run; a latency is always that of a whole batch.
        retired: why no runtime serves the device any more; empty where one does.
        note: how it is used, shown where it cannot be measured.
        host: where it is, as ``ssh://[USER@]HOST[:PORT]``; empty is this machine.
        python: the Python there; never stored in a table, which may come from a stranger.
    """

    model_config = _STRICT

    format: Literal[1] = 1
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    description: str = ""
    runtime: Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt", "tensorrt_rtx"]
    device: str = Field(pattern=r"^(cpu|cuda(:\d{1,3})?)$")
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    batch_size: int = Field(default=1, ge=1, le=4096)
    threads: int = Field(default=1, ge=0, le=1024)
    timing: Timing = Timing()
    builder: Builder = Builder()
    retired: str = ""
    note: str = ""
    host: str = Field(default="", max_length=300, pattern=HOST)
    python: str = Field(default="", max_length=500, pattern=r"^[^\x00-\x1f]*$")

    @property
    def address(self) -> str:
        """What ``--device`` takes for it."""
        return f"{self.host}/{self.name}" if self.host else self.name

    @property
    def on_this_cpu(self) -> bool:
        """Whether it is the CPU of this machine."""
        return not self.host and self.device == "cpu"

    @property
    def lock_name(self) -> str:
        """What two processes of this machine must not measure at once."""
        return f"{self.host.removeprefix('ssh://')}-{self.device}" if self.host else self.device

    @property
    def thread_count(self) -> int:
        """Threads that a run uses; 0 for all cores of a device that is elsewhere, which says how many it has."""
        if self.host:
            return self.threads
        return self.threads or len(os.sched_getaffinity(0))

    def runtime_options(self) -> dict[str, Any]:
        """What the measuring process opens the runtime with; far away, 0 threads are all cores there."""
        options: dict[str, Any] = {"threads": self.thread_count}
        if self.device != "cpu":
            options["gpu"] = int(self.device.partition(":")[2] or 0)
        if self.runtime in ENGINE_RUNTIMES:
            options |= {"precision": self.precision, "builder": self.builder.model_dump()}
        return options

    def override(self, **changes: Any) -> DeviceProfile:
        """This profile with some fields replaced; None leaves a field as it is. `target_error` goes to `timing`.

        Raises:
            UsageError: a value is not allowed.
        """
        wanted = {key: value for key, value in changes.items() if value is not None}
        data = self.model_dump()
        if "target_error" in wanted:
            data["timing"]["target_error"] = wanted.pop("target_error")
        return _validate({**data, **wanted}, f"profile {self.name}", UsageError)


def _validate(data: dict[str, Any], origin: str, error_type: type[HwnasError]) -> DeviceProfile:
    try:
        profile = DeviceProfile.model_validate(data)
    except ValidationError as error:
        raise error_type(f"{origin}: {_first_problem(error)}") from None
    on_gpu = profile.runtime in GPU_RUNTIMES
    if on_gpu and profile.device == "cpu":
        raise error_type(f"{origin}: the runtime {profile.runtime} needs an NVIDIA GPU (--device cuda), not the cpu")
    if not on_gpu and profile.device != "cpu":
        raise error_type(f"{origin}: the runtime {profile.runtime} runs on the cpu, not on {profile.device}")
    if profile.precision != "fp32" and profile.runtime not in ENGINE_RUNTIMES:
        raise error_type(f"{origin}: the precision {profile.precision} needs TensorRT; {profile.runtime} has fp32")
    if profile.timing.min_passes > profile.timing.max_passes:
        raise error_type(f"{origin}: timing.min_passes is above timing.max_passes")
    return profile


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        inner: dict[str, type[BaseModel]] = {"timing": Timing, "builder": Builder}
        fields = (inner[str(problem["loc"][0])] if len(problem["loc"]) > 1 else DeviceProfile).model_fields
        near = difflib.get_close_matches(str(problem["loc"][-1]), list(fields), n=1)
        return f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(fields)}")
    if problem["type"] == "missing":
        return f"the key {where!r} is missing"
    return f"{where}: {problem['msg'].lower()}, not {problem['input']!r}"


def list_profiles() -> list[DeviceProfile]:
    """The profiles that ship with hwnas."""
    folder = importlib.resources.files("hwnas._data.profiles")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return [_read((folder / name).read_text(encoding="utf-8"), f"profile {name}") for name in names]


def _read(text: str, origin: str) -> DeviceProfile:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HwnasError(f"{origin} is not valid TOML: {error}") from None
    return _validate(data, origin, HwnasError)


def find_profile(text: str) -> DeviceProfile:
    """The profile that `text` names: a name in ``profiles/`` or the path of a TOML file, perhaps on another host.

    ``ssh://HOST/PROFILE`` is a profile of this machine, by its name or path, measured there.

    Raises:
        UsageError: there is no such profile.
        HwnasError: the file cannot be read or has an unknown or ill-typed key.
    """
    if text.startswith("ssh://"):
        host, name, python = split_address(text)
        return find_profile(name or "cpu").override(host=host, python=python or None)
    if text.endswith(".toml") or os.sep in text:
        try:
            return _read(Path(text).read_text(encoding="utf-8"), text)
        except (OSError, UnicodeDecodeError) as error:
            raise HwnasError(f"cannot read the profile {text}: {error}") from None
    profiles = {profile.name: profile for profile in list_profiles()}
    if text in profiles:
        return profiles[text]
    name, _, number = text.partition(":")
    if number.isdigit() and name in profiles and profiles[name].device == "cuda":
        return profiles[name].override(device=f"cuda:{number}")
    near = difflib.get_close_matches(text, profiles, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"no device profile {text!r}{hint} (known: {', '.join(profiles)}; or the path of a .toml file)")


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """Whether a profile's runtime works here, why not where it does not, and what mends it."""

    name: str
    runtime: str
    available: bool
    reason: str
    fix: str


def available_runtimes(host: str = "") -> list[RuntimeStatus]:
    """Every shipped profile with whether it can be measured on this machine, or on an ``ssh://`` host.

    Each is tried in a measuring process, as measuring itself would: nothing is imported here.
    """
    from hwnas.measure.process import MeasuringProcess

    found = []
    where, _, python = split_address(host) if host else ("", "", "")
    for shipped in list_profiles():
        profile = shipped.override(host=where, python=python)
        try:
            with MeasuringProcess(profile) as process:
                says = process.describe
        except RuntimeMissing as error:
            found.append(RuntimeStatus(profile.name, profile.runtime, False, error.reason, error.fix))
            continue
        reason = f"{says['runtime']} {says['runtime_version']}, {says['device']}, {says['cores']} cores"
        found.append(RuntimeStatus(profile.name, profile.runtime, True, reason, ""))
    return found


def default_device(runtime: str | None = None) -> str:
    """The profile where none is named: the CPU's, or the first that ships for a runtime that needs a GPU."""
    if runtime in GPU_RUNTIMES:
        return next((known.name for known in list_profiles() if known.runtime == runtime), "cpu")
    return "cpu"


def with_runtime(profile: DeviceProfile, runtime: str) -> DeviceProfile:
    """`profile`, deployed by another runtime: what ships for its device with that runtime, else a profile named so.

    Raises:
        UsageError: there is no such runtime.
    """
    changed = profile.override(runtime=runtime)
    if changed == profile:
        return profile
    shipped = list_profiles()
    if profile.override(host="", python="") in shipped:
        for known in shipped:
            if (known.device, known.runtime, known.precision) == (profile.device, runtime, profile.precision):
                return known.override(host=profile.host, python=profile.python)
    return profile.override(runtime=runtime, name=f"{profile.name}-{runtime}")
