"""Time of a digit in exported C and in the engine, on one thread: python -m tests.time_exported_c

Prints for each set of a compiler's flags the quickest of many runs, in microseconds of processor
time, and how many bytes of flash and RAM the object has.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from refimpl import engine
from refimpl.data import bundled, mnist
from tests import exported_c

FLAGS = (("-O2",), ("-O3",), ("-O2", "-mavx2"), ("-O3", "-mavx2"), ("-O3", "-march=native"))
DEVICES = {
    "arm-none-eabi": ("-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard",
                      "-mfpu=fpv4-sp-d16"),
    "riscv64-unknown-elf": ("-Os", "--specs=picolibc.specs", "-march=rv32imac", "-mabi=ilp32"),
}  # fmt: skip
TIMER = """
#include <stdio.h>
#include <time.h>
#include "didb_micro_mnist.h"
static float image[DIDB_MICRO_MNIST_PIXELS], logits[DIDB_MICRO_MNIST_LOGITS];
int main(void)
{
    double best = 1e9;
    int run, i;
    if (fread(image, sizeof image, 1, stdin) != 1)
        return 1;
    for (run = 0; run < 300; run++) {
        const clock_t begin = clock();
        for (i = 0; i < 10; i++)
            didb_micro_mnist_classify(image, logits);
        const double each = (double)(clock() - begin) / CLOCKS_PER_SEC / 10;
        best = each < best ? each : best;
    }
    printf("%.0f", 1e6 * best);
    return 0;
}
"""


def main() -> None:
    images, _ = mnist.load(bundled.mnist() / "small", "test")
    image = mnist.PREPROCESSING.apply_array(images[:1])
    run = engine.load("didb_micro_mnist", threads=1)
    times = []
    for _ in range(3000):
        begin = time.process_time_ns()
        run(image)
        times.append(time.process_time_ns() - begin)
    print(f"engine, one thread: {min(times) / 1000:.0f} us")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = exported_c.export_file("didb_micro_mnist", folder / "c")
        (folder / "timer.c").write_text(TIMER)
        for cc in filter(shutil.which, ("gcc", "clang")):
            for flags in FLAGS:
                if "-mavx2" in flags and platform.machine() not in ("x86_64", "AMD64"):
                    continue
                more = (folder / "timer.c",)
                program = exported_c.compile(code, folder / "timer", *flags, cc=cc, more=more)
                data = image.astype("<f4").tobytes()
                found = subprocess.run([program], input=data, capture_output=True, check=True)
                print(f"{cc} {' '.join(flags)}: {found.stdout.decode()} us")
        for device, flags in DEVICES.items():
            if shutil.which(f"{device}-gcc"):
                made = [f"{device}-gcc", *exported_c.STRICT, *flags, "-c", code, "-o", folder / "o"]
                subprocess.run(made, check=True)
                size = [f"{device}-size", folder / "o"]
                found = subprocess.run(size, capture_output=True, text=True, check=True)
                text, _, bss = found.stdout.split()[6:9]
                print(f"{device}: {int(text):,} bytes of flash, {int(bss):,} of RAM")


if __name__ == "__main__":
    main()
