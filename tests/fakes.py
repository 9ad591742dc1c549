"""Sensors that are not there: a module like pynvml, trees like sysfs, a clock that is told to move."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED = 3


class FakeClock:
    """Nanoseconds that only `sleep` moves."""

    def __init__(self, now_ns: int = 5_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeNvml:
    """What `import pynvml` would give, on a machine with the GPUs that you say.

    `energy_mj` and `power_w` are functions of the seconds since it was made; the counter is updated
    every `update_period_s`. `errors` are the codes that functions fail with, `field_errors` those
    of single fields (id, scope), which do not raise. `reasons` are the clocks' event bits.
    """

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    _nvmlGetFunctionPointer = None  # noqa: N815

    def __init__(
        self,
        *,
        names: Sequence[str] = ("NVIDIA H200",),
        clock: Callable[[], int] = time.perf_counter_ns,
        energy_mj: Callable[[float], float] = lambda s: 1e9 + 100e3 * s,
        power_w: Callable[[float], float] = lambda s: 100.0 + s,
        update_period_s: float = 0.1,
        errors: Mapping[str, int] | None = None,
        field_errors: Mapping[tuple[int, int], int] | None = None,
        reasons: int = 0,
        mig: bool = False,
        processes: Mapping[int, str] | None = None,
    ) -> None:
        self.names = names
        self.errors = dict(errors or {})
        self.field_errors = dict(field_errors or {})
        self.calls: list[str] = []
        self._clock = clock
        self._start_ns = clock()
        self._energy_mj = energy_mj
        self._power_w = power_w
        self._update_period_s = update_period_s
        self._processes = dict(processes or {})
        number = "nvmlDeviceGetHandleByIndex"
        self._answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: "570.86",
            "nvmlSystemGetProcessName": lambda pid: self._processes[pid],
            "nvmlDeviceGetCount": lambda: len(names),
            number: lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetName": lambda gpu: names[gpu] if isinstance(gpu, int) else gpu,
            "nvmlDeviceGetUUID": lambda gpu: uuid_of(gpu) if isinstance(gpu, int) else gpu,
            "nvmlDeviceGetPciInfo": lambda gpu: SimpleNamespace(busId=b"00000000:01:00.0"),
            "nvmlDeviceGetMigMode": lambda gpu: [int(mig), int(mig)],
            "nvmlDeviceGetClockInfo": lambda gpu, kind: {1: 1980, 2: 3201}[kind],
            "nvmlDeviceGetTemperatureV": lambda gpu, sensor: 41,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 42,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda gpu: reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: reasons,
            "nvmlDeviceGetComputeRunningProcesses": self._running,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda gpu: [],
            "nvmlDeviceGetTotalEnergyConsumption": self._total_mj,
            "nvmlDeviceGetPowerUsage": lambda gpu: round(power_w(self._elapsed_s()) * 1e3),
            "nvmlDeviceGetFieldValues": lambda gpu, fields: [self._field(*f) for f in fields],
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self.__dict__.get("_answers", {}):
            raise AttributeError(name)

        def function(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.errors:
                raise FakeNvmlError(self.errors[name])
            return self._answers[name](*args)

        return function

    def without(self, *functions: str) -> "FakeNvml":
        """As an older binding, which lacks functions."""
        for name in functions:
            del self._answers[name]
        return self

    def _elapsed_s(self) -> float:
        return (self._clock() - self._start_ns) / 1e9

    def _total_mj(self, gpu: object) -> int:
        updates = int(self._elapsed_s() / self._update_period_s)
        return int(self._energy_mj(updates * self._update_period_s))

    def _running(self, gpu: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self._processes]

    def _field(self, number: int, scope: int) -> SimpleNamespace:
        milliwatts = round(self._power_w(self._elapsed_s()) * 1e3)
        return SimpleNamespace(
            nvmlReturn=self.field_errors.get((number, scope), 0),
            valueType=1,
            value=SimpleNamespace(uiVal=milliwatts),
        )


def uuid_of(gpu: int) -> str:
    return f"GPU-{gpu}8932f93-7bb0-4f5c-b7e2-{gpu:012d}"


def fake_orin() -> FakeNvml:
    """Jetson Orin on JetPack 6 and 7: initialised, one GPU found, every reading refused."""
    refused = (
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetMigMode",
    )
    return FakeNvml(
        names=["Orin (nvgpu)"],
        errors=dict.fromkeys(refused, NOT_SUPPORTED),
        field_errors={(186, 0): NOT_SUPPORTED, (186, 1): NOT_SUPPORTED},
    )


Channel = tuple[str, int, int]
"""Label, millivolts, milliamperes."""
BOARDS: Mapping[str, Sequence[Sequence[Channel]]] = {
    "orin-nano": [[("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 200), ("VDD_SOC", 5000, 240)]],
    "agx-orin": [
        [("VDD_GPU_SOC", 20000, 240), ("VDD_CPU_CV", 20000, 40), ("VIN_SYS_5V0", 5000, 800)],
        [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200), ("NC", 0, 0)],
    ],
    "thor": [
        [("VDD_GPU", 20000, 100), ("VDD_CPU_SOC_MSS", 20000, 200), ("VIN_SYS_5V0", 5000, 900)]
    ],
    "xavier": [
        [("GPU", 19000, 50), ("CPU", 19000, 40), ("SOC", 19000, 60)],
        [("CV", 19000, 10), ("VDDRQ", 19000, 20), ("SYS5V", 5000, 700)],
    ],
}


def hwmon_tree(root: Path, board: str = "orin-nano", *, first: int = 0, iio: bool = False) -> Path:
    """Writes a board's power sensors below a root; hwmon's numbers begin with `first`.

    Of hwmon it has what the kernel's driver makes of an INA3221: in4 to in6 are shunt voltages, in7
    and curr4 their sum. With `iio` it is what JetPack 4 makes of it. Thor has an INA238 as well.
    """
    for index, channels in enumerate(BOARDS[board]):
        if iio:
            folder = root / f"sys/bus/i2c/drivers/ina3221x/1-004{index}/iio:device{index}"
            write_ina3221x(folder, channels)
        else:
            write_ina3221(root / f"sys/class/hwmon/hwmon{first + index}", channels)
    if board == "thor":
        write_ina238(root / f"sys/class/hwmon/hwmon{first + 1}", "VIN", 23_000_000)
    return root


def write_ina3221(folder: Path, channels: Sequence[Channel], *, shunt_uohm: int = 5000) -> None:
    files: dict[str, object] = {
        "name": "ina3221",
        "update_interval": 7,
        "samples": 1,
        "in7_label": "sum of shunt voltages",
        "in7_input": 99999,
        "curr4_input": 99999,
    }
    for number, (label, millivolts, milliamperes) in enumerate(channels, 1):
        files |= {
            f"in{number}_label": label,
            f"in{number}_input": millivolts,
            f"curr{number}_input": milliamperes,
            f"in{number + 3}_input": 77777,
            f"shunt{number}_resistor": shunt_uohm,
        }
    write_files(folder, files)


def write_ina238(folder: Path, label: str, microwatts: int) -> None:
    write_files(
        folder,
        {
            "name": "ina238",
            "label": label,
            "power1_input": microwatts,
            "in1_input": 20000,
            "curr1_input": 1,
        },
    )


def write_ina3221x(folder: Path, channels: Sequence[Channel]) -> None:
    files: dict[str, object] = {"name": "ina3221x"}
    for number, (label, millivolts, milliamperes) in enumerate(channels):
        files[f"rail_name_{number}"] = label
        files[f"in_power{number}_input"] = millivolts * milliamperes // 1000
    write_files(folder, files)


def rapl_tree(root: Path, *, packages: int = 1, range_uj: int = 262_143_328_850) -> Path:
    """Writes RAPL's zones below a root: packages, a subzone of each, psys; all counters at 1 J."""
    folder = root / "sys/class/powercap"
    names = {f"intel-rapl:{n}": f"package-{n}" for n in range(packages)}
    names |= {f"intel-rapl:{n}:0": "core" for n in range(packages)}
    names |= {f"intel-rapl:{packages}": "psys"}
    for zone, name in names.items():
        write_files(
            folder / zone,
            {"name": name, "energy_uj": 1_000_000, "max_energy_range_uj": range_uj},
        )
    return root


def write_files(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
