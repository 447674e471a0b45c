"""Steps of a compiled program on several threads: the same bytes, without a race, at a cost that is shown."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.errors import InputError
from tests.aot_programs import compiled

COUNT = 130  # tokens
WIDE = {"layers": 2, "width": 80, "vocab": COUNT}  # products of several panels, on any core
USER = (
    f"#define COUNT {COUNT}\n"
    + """\
#include "model_team.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef ABSENT
#include <pthread.h>
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x);
int __wrap_pthread_join(pthread_t t, void **x);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x)
{
    return (void)t, (void)a, (void)f, (void)x, 0;
}
int __wrap_pthread_join(pthread_t t, void **x)
{
    return (void)t, (void)x, 0;
}
#endif
static unsigned char *room(size_t bytes)
{
    void *p = NULL;
    return posix_memalign(&p, 64, bytes) == 0 ? p : NULL;
}
int main(void)
{
    static float one[COUNT], several[COUNT];
    static int64_t token;
    const model_inputs inputs = {&token};
    const model_outputs first = {one}, second = {several};
    const model_bound a = {&inputs, &first, room(MODEL_STATE_BYTES), MODEL_STATE_BYTES, room(MODEL_ARENA_BYTES),
                           MODEL_ARENA_BYTES, 1};
    const model_bound b = {&inputs, &second, room(MODEL_STATE_BYTES), MODEL_STATE_BYTES, room(MODEL_ARENA_BYTES),
                           MODEL_ARENA_BYTES, 1};
    int threads, step;
    for (threads = 1; threads <= MODEL_MOST_THREADS; threads += 3) {
        model_team *team = (model_team *)room(model_team_bytes());
        if (model_team_start(team, &b, threads) != MODEL_OK) return 1;
        if (model_reset(a.state, MODEL_STATE_BYTES) != MODEL_OK || model_reset(b.state, MODEL_STATE_BYTES) != MODEL_OK)
            return 2;
        for (step = 0; step < 12; ++step) {
            token = (step * 37) % COUNT;
            if (model_step_bound(&a) != MODEL_OK || model_team_step(team) != MODEL_OK) return 3;
            if (memcmp(one, several, sizeof one) != 0) return 4;
            if (model_team_idle(team) != MODEL_OK) return 5;
        }
        token = COUNT;
        if (model_team_step(team) != MODEL_ERROR_RANGE) return 6;
        model_team_stop(team);
    }
    if (model_team_start(NULL, &b, 1) != MODEL_ERROR_NULL) return 7;
    return model_team_start((model_team *)room(model_team_bytes()), &b, MODEL_MOST_THREADS + 1) != MODEL_ERROR_SIZE;
}
"""
)

NAP = """
#include <pthread.h>
#include <time.h>
#include <unistd.h>
static pthread_t first;
static unsigned others;
__attribute__((constructor)) static void begun(void) { first = pthread_self(); }
__attribute__((destructor)) static void ended(void) { if (others == 0) _exit(9); }
static void nap(void)
{
    const int is_first = pthread_equal(first, pthread_self()) != 0;
    const struct timespec span = {0, is_first ? 50000 : 200000};
    if (!is_first) __atomic_add_fetch(&others, 1u, __ATOMIC_RELAXED);
    nanosleep(&span, NULL);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled RWKV-4 of several panels, beside its file `w.onnx`."""
    from edgemem.export import export_model

    folder = tmp_path_factory.mktemp("team")
    export_model("rwkv4", folder / "w.onnx", WIDE, seed=1)
    compiled(folder / "w.onnx", folder / "p")
    return folder / "p"


def test_any_number_of_threads_gives_the_same_bytes(program: Path) -> None:
    manifest = json.loads((program / "manifest.json").read_text())
    assert max(kernel["shares"] or 0 for kernel in manifest["kernels"]) > 1
    tokens = np.random.default_rng(0).integers(0, COUNT, (12, 1, 1))
    one = edgemem.load(program).stream()
    wanted = [one.step(token).tobytes() for token in tokens]
    for threads in (2, 3):
        several = edgemem.load(program, threads=threads)
        stream = several.stream()
        assert [stream.step(token).tobytes() for token in tokens] == wanted
        assert stream.snapshot() == one.snapshot()
        with pytest.raises(InputError, match="outside its range"):
            several.step({"tokens": np.array([[COUNT]])}, several.new_state())


def test_threads_end_with_their_stream(program: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").is_dir():
        pytest.skip("this system does not list threads")

    def settled() -> int:
        """Threads, once those of earlier tests have ended."""
        gc.collect()
        for _ in range(50):
            now = count()
            time.sleep(0.1)
            if count() == now:
                break
        return now

    before = settled()
    stream = edgemem.load(program, threads=3).stream()
    assert count() == before + 2 and threading.active_count() >= 1
    del stream
    assert count() == before


def slow_kernels(program: Path) -> tuple[str, list[str]]:
    """C text of kernels that take a nap before they compute, in every thread, and flags that put them before those that
    threads share; at the end of the process it fails if no thread but the first has computed anything.
    """
    text = (program / "model_team.c").read_text()
    found = re.findall(r"^extern void (\w+)\((.*), int32_t, int32_t\);$", text, re.MULTILINE)
    naps = []
    for symbol, types in found:
        names = [f"p{index}" for index in range(types.count(",") + 1)]
        pairs = ", ".join(f"{kind.strip()} {name}" for kind, name in zip(types.split(","), names, strict=True))
        naps.append(
            f"void __real_{symbol}({pairs}, int32_t, int32_t);\nvoid __wrap_{symbol}({pairs}, int32_t, int32_t);\n"
            f"void __wrap_{symbol}({pairs}, int32_t b, int32_t e)\n"
            f"{{ nap(); __real_{symbol}({', '.join(names)}, b, e); }}\n"
        )
    return NAP + "\n".join(naps), [f"-Wl,--wrap={symbol}" for symbol, _ in found]


def user(program: Path, folder: Path, *flags: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """`USER` and `more`, compiled with the sources of a program."""
    (folder / "user.c").write_text(USER + more)
    sources = [folder / "user.c", *(program / name for name in ("model.c", "model_team.c", "model_weights.S"))]
    command = ["gcc", "-g", "-O1", "-pthread", f"-I{program}", f"-Wa,-I{program}", *flags]
    return subprocess.run(
        [*command, "-o", folder / "user", *sources, program / "model_kernels.o"], capture_output=True, text=True
    )


def test_the_first_waits_for_parts_that_others_have_begun(program: Path, tmp_path: Path) -> None:
    """Every part takes a while, so that all threads have some, and what is computed after one that is late is wrong."""
    more, flags = slow_kernels(program)
    assert len(flags) > 1
    built = user(program, tmp_path, *flags, more=more)
    assert built.returncode == 0, built.stderr
    assert subprocess.run([tmp_path / "user"], timeout=300).returncode == 0


def test_nobody_waits_for_a_thread_that_does_not_come(program: Path, tmp_path: Path) -> None:
    """The system may let one sleep: what it has not begun the others compute. Here none ever starts."""
    built = user(program, tmp_path, "-DABSENT", "-Wl,--wrap=pthread_create,--wrap=pthread_join")
    assert built.returncode == 0, built.stderr
    assert subprocess.run([tmp_path / "user"], timeout=60).returncode == 0


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled model with vector codes: of products by tables each thread has one part, not several."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    folder = tmp_path_factory.mktemp("coded")
    export_model("rwkv4", folder / "w.onnx", {"layers": 1, "width": 128, "vocab": COUNT}, seed=1)
    quantize(folder / "w.onnx", folder / "q.onnx", "vq:dim=4,codes=64,mirror=1")
    compiled(folder / "q.onnx", folder / "p")
    return folder / "p"


@pytest.mark.parametrize("name", ["program", "coded"])
def test_threads_do_not_race(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    """The driver under the thread sanitizer, one thread to more than some products have parts, beside a single one."""
    built = user(request.getfixturevalue(name), tmp_path, "-fsanitize=thread")
    if "cannot find -ltsan" in built.stderr or "libtsan" in built.stderr:
        pytest.skip("the thread sanitizer is not installed")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([tmp_path / "user"], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stderr[-3000:]


def test_bench_shows_what_threads_cost(program: Path) -> None:
    from edgemem.cli.main import cli

    file = str(program.parent / "w.onnx")
    done = CliRunner().invoke(cli, ["bench", file, "--runtime", "aot", "--threads", "2", "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert row["threads"] == 2 and row["pool_us"] > 0 and row["c_p50_us"] > 0
