"""What an NVIDIA GPU says of itself: the one place that talks to NVML.

    nvml = connect()                                      DeviceError, with the reason, if it fails
    nvml.call("nvmlDeviceGetPowerUsage", nvml.handle)     raises DeviceError
    nvml.query("nvmlDeviceGetPowerUsage")                 None, and nvml.reasons says why

That NVML could be initialised says nothing about what it can read: on a Jetson Orin it finds a GPU
and refuses every reading. So each reading is None on its own, with its own reason.
"""

import os
from importlib import import_module
from typing import Any, NamedTuple

from .errors import DeviceError

POWER_INSTANT = 186
"""Field: power in mW, not averaged over a second as `nvmlDeviceGetPowerUsage` is since Ampere."""
SCOPE_GPU = 0
SCOPE_MODULE = 1
"""CPU and GPU together, on a Grace Hopper superchip."""

# Codes of nvml.h. A class of the binding for each exists too, but only for those it knows.
_NOT_SUPPORTED = 3
_PLAIN_WORDS = {
    1: "NVML was not initialised in this process",
    _NOT_SUPPORTED: "this GPU or its driver does not support it",
    4: "no permission; run as root, or let your user use the /dev/nvidia* devices",
    6: "NVML found no such GPU, process or sensor",
    9: "the NVIDIA driver is not loaded; load it (modprobe nvidia) or reboot",
    10: "the GPU did not answer in time",
    12: "the library libnvidia-ml.so.1 was not found; install the NVIDIA driver, or start the "
    "container with --gpus",
    13: "the installed driver is too old to have it; upgrade the driver",
    15: "the GPU is lost: it fell off the bus or was taken away; look at dmesg and reboot",
    16: "the GPU must be reset before it can be used again; reboot",
    17: "the operating system blocked it; look at the container's device permissions",
    18: "the driver was upgraded while the old one was loaded; reboot",
    28: "no GPU was found",
}
# Bits of nvmlClocksEventReasons in nvml.h. The others (idle, clocks that somebody set, clocks that
# follow a display or other GPUs) are no throttling.
_THROTTLING = {
    0x04: "sw-power-cap",
    0x08: "hw-slowdown",
    0x20: "sw-thermal",
    0x40: "hw-thermal",
    0x80: "hw-power-brake",
}
_APPLICATIONS_CLOCKS = 0x02


class GpuProcess(NamedTuple):
    pid: int
    """As the host counts: inside a container it is not what the container knows it by."""
    name: str | None


def connect(module: Any = None, uuid: str | None = None) -> "Nvml":
    """The GPU that CUDA would use first, or the one with that UUID.

    `module` stands for the binding `pynvml` of the package nvidia-ml-py. With a UUID (with or
    without `GPU-` in front, as torch gives it) there is no doubt. Without, the first entry of
    `CUDA_VISIBLE_DEVICES` is taken: a UUID, the beginning of one, a MIG slice's, or an index; else
    index 0. NVML numbers GPUs by their place on the PCI bus, CUDA from the fastest unless
    `CUDA_DEVICE_ORDER=PCI_BUS_ID`; where that can name two different GPUs, nothing is guessed.

    Raises:
        DeviceError: NVML does not work here, or the GPU is not there or is ambiguous.
    """
    return Nvml(_binding() if module is None else module, uuid)


class Nvml:
    """A GPU as NVML knows it. Calls may come from several threads, and after a fork."""

    def __init__(self, module: Any, uuid: str | None = None) -> None:
        if not hasattr(module, "_nvmlGetFunctionPointer"):
            raise DeviceError(
                "the module pynvml is not NVIDIA's but that of the unofficial package 'pynvml'; "
                "run: pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
            )
        self.reasons: dict[str, str] = {}
        """Why the last call of a function, or reading of a field, gave nothing."""
        self._module = module
        self._uuid = uuid
        self._open()
        self.name = _text(self.query("nvmlDeviceGetName")) or "NVIDIA GPU"
        self.uuid = _text(self.query("nvmlDeviceGetUUID"))
        self.driver = _text(self.query("nvmlSystemGetDriverVersion", device=False))
        self.pci = _text(getattr(self.query("nvmlDeviceGetPciInfo"), "busId", None))
        self._uuid = self.uuid or uuid  # the same GPU after a fork, whatever the environment says

    @property
    def handle(self) -> Any:
        """NVML's name for the GPU in this process."""
        # A forked child has the parent's memory but not its connection to the driver.
        if os.getpid() != self._pid:
            self._open()
        return self._handle

    def call(self, function: str, *args: Any) -> Any:
        """What a function of the binding returns.

        Raises:
            DeviceError: it failed; the message has the function and the reason in plain words.
        """
        try:
            return self._function(function)(*args)
        except self._errors as error:
            raise DeviceError(f"NVML's {function} failed: {self._words(error)}") from error

    def query(self, function: str, *args: Any, device: bool = True) -> Any:
        """What a function returns for this GPU, or `None` with the reason in `reasons`."""
        try:
            value = self.call(function, *((self.handle,) if device else ()), *args)
        except DeviceError as error:
            self.reasons[function] = str(error)
            return None
        self.reasons.pop(function, None)
        return value

    def read_field(self, field_id: int, scope: int = SCOPE_GPU) -> float:
        """A field's value, in NVML's unit for it.

        Raises:
            DeviceError: the field cannot be read, though the call may have succeeded: each field
                has an error of its own.
        """
        (field,) = self.call("nvmlDeviceGetFieldValues", self.handle, [(field_id, scope)])
        if field.nvmlReturn != 0:
            words = _plain(field.nvmlReturn) or f"NVML's error {field.nvmlReturn}"
            raise DeviceError(f"NVML's field {field_id} of scope {scope} failed: {words}")
        return float(getattr(field.value, _MEMBERS.get(field.valueType, "uiVal")))

    def field(self, field_id: int, scope: int = SCOPE_GPU) -> float | None:
        """A field's value, or `None` with the reason in `reasons` under `field <id> <scope>`."""
        key = f"field {field_id} {scope}"
        try:
            value = self.read_field(field_id, scope)
        except DeviceError as error:
            self.reasons[key] = str(error)
            return None
        self.reasons.pop(key, None)
        return value

    def throttle_reasons(self) -> tuple[str, ...] | None:
        """Why the GPU runs slower than it could; `None` if it does not say, which is not "none".

        Of sw-power-cap, hw-slowdown, sw-thermal, hw-thermal and hw-power-brake. An idle GPU, or one
        whose clocks somebody set, is not throttled.
        """
        bits = self._clocks_event_reasons()
        if bits is None:
            return None
        return tuple(name for bit, name in _THROTTLING.items() if bits & bit)

    def locked(self) -> bool | None:
        """`True` if the clocks are held by a setting that somebody made, `None` if unknown.

        NVML tells no locked range. It only says, of a busy GPU, that a setting is what holds the
        clock; that it does not say so proves nothing.
        """
        bits = self._clocks_event_reasons()
        return True if bits is not None and bits & _APPLICATIONS_CLOCKS else None

    def clocks_mhz(self) -> dict[str, int]:
        """The clocks of now, `sm` and `memory`; one that cannot be read is left out."""
        kinds = {"sm": "NVML_CLOCK_SM", "memory": "NVML_CLOCK_MEM"}
        values = {
            name: self.query("nvmlDeviceGetClockInfo", getattr(self._module, constant))
            for name, constant in kinds.items()
        }
        return {name: int(value) for name, value in values.items() if value is not None}

    def temperature_c(self) -> float | None:
        """Of the GPU's die."""
        sensor = self._module.NVML_TEMPERATURE_GPU
        value = self.query("nvmlDeviceGetTemperatureV", sensor)
        if value is None:  # before NVML 13
            value = self.query("nvmlDeviceGetTemperature", sensor)
        return None if value is None else float(value)

    def processes(self) -> tuple[GpuProcess, ...] | None:
        """The other processes that have something on the GPU; `None` if NVML does not tell."""
        lists = [
            self.query("nvmlDeviceGetComputeRunningProcesses"),
            self.query("nvmlDeviceGetGraphicsRunningProcesses"),
        ]
        if lists[0] is None:
            return None
        pids = {int(process.pid) for found in lists for process in found or ()} - {os.getpid()}
        return tuple(GpuProcess(pid, self._process_name(pid)) for pid in sorted(pids))

    def mig(self) -> bool:
        """Whether the GPU is cut into MIG slices, or is one."""
        if (self.uuid or "").startswith("MIG-"):
            return True
        mode = self.query("nvmlDeviceGetMigMode")  # not supported where there is no MIG
        return mode is not None and mode[0] == 1

    def _open(self) -> None:
        self.call("nvmlInit")
        self._handle = self._find()
        self._pid = os.getpid()  # last: a process that could not connect tries again

    def _find(self) -> Any:
        if self._uuid is not None:
            return self._by_uuid(self._uuid if "-" in self._uuid[:4] else f"GPU-{self._uuid}")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return self._by_index(0, "CUDA_VISIBLE_DEVICES is not set")
        first = visible.split(",")[0].strip()
        if first.startswith(("GPU-", "MIG-")):
            return self._by_uuid(first)
        if not first.isdigit():  # empty, -1, NoDevFiles: CUDA stops at the first it does not know
            raise DeviceError(
                f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; unset it, or name one"
            )
        return self._by_index(int(first), f"CUDA_VISIBLE_DEVICES={visible!r}")

    def _by_uuid(self, uuid: str) -> Any:
        if uuid.startswith("MIG-"):
            return self.call("nvmlDeviceGetHandleByUUID", uuid)
        handles = [handle for handle, found in self._uuids().items() if found.startswith(uuid)]
        if len(handles) != 1:
            raise DeviceError(
                f"the GPU {uuid} was asked for; of the GPUs here ({', '.join(self._uuids().values())}) "
                f"{len(handles)} are called that; give one whole UUID"
            )
        return self._by_number(handles[0])

    def _uuids(self) -> dict[int, str]:
        numbers = range(self.call("nvmlDeviceGetCount"))
        return {n: _text(self.call("nvmlDeviceGetUUID", self._by_number(n))) or "" for n in numbers}

    def _by_index(self, index: int, why: str) -> Any:
        count = self.call("nvmlDeviceGetCount")
        if index >= count:
            raise DeviceError(f"GPU {index} was asked for ({why}), but NVML has {count}")
        if count > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            handles = [self._by_number(number) for number in range(count)]
            names = {_text(self.call("nvmlDeviceGetName", handle)) for handle in handles}
            if len(names) > 1:
                raise DeviceError(
                    f"which GPU is CUDA's number {index} ({why}) cannot be told: here are "
                    f"{', '.join(sorted(map(str, names)))}; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or a "
                    "UUID in CUDA_VISIBLE_DEVICES"
                )
        return self._by_number(index)

    def _by_number(self, number: int) -> Any:
        return self.call("nvmlDeviceGetHandleByIndex", number)

    def _clocks_event_reasons(self) -> int | None:
        bits = self.query("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # the name it had before driver 535
            bits = self.query("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else int(bits)

    def _process_name(self, pid: int) -> str | None:
        return _text(self.query("nvmlSystemGetProcessName", pid, device=False))

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._module, name)
        except AttributeError as error:
            raise DeviceError(
                f"the installed nvidia-ml-py has no {name}; upgrade it: pip install -U nvidia-ml-py"
            ) from error

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        # The second is no subclass of the first: a function that the driver has in another version.
        mismatch = getattr(self._module, "NVMLLibraryMismatchError", self._module.NVMLError)
        return (self._module.NVMLError, mismatch)

    def _words(self, error: Exception) -> str:
        return _plain(getattr(error, "value", None)) or str(error)


def _binding() -> Any:
    try:
        return import_module("pynvml")
    except ImportError as error:
        raise DeviceError(
            "the NVIDIA binding pynvml is not installed; run: pip install nvidia-ml-py"
        ) from error


def _plain(code: object) -> str | None:
    return _PLAIN_WORDS.get(code) if isinstance(code, int) else None


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# Which member of the union holds the value, by nvmlValueType_t.
_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
