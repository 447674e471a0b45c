/* Semihosting, of Arm and of RISC-V: the debugger (or the emulator) opens, reads and writes on the host. */
#include "console.h"

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 0x18, READ_BINARY = 1, WRITE = 4 };
enum { STOPPED_BY_ERROR = 0x20023, STOPPED_BY_EXIT = 0x20026 };

static uintptr_t in, out;

static uintptr_t call(uintptr_t operation, const void *argument)
{
#if defined(__riscv)
    register uintptr_t a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    __asm__ volatile(".option push\n\t.option norvc\n\t.balign 16\n\tslli x0, x0, 0x1f\n\tebreak\n\tsrai x0, x0, 7\n\t"
                     ".option pop"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
    return a0;
#else
    register uintptr_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
#endif
}

static uintptr_t open_file(const char *name, size_t length, uintptr_t mode)
{
    const uintptr_t block[3] = {(uintptr_t)name, mode, length};
    return call(SYS_OPEN, block);
}

void console_open(void)
{
    in = open_file("/dev/stdin", 10, READ_BINARY);
    out = open_file(":tt", 3, WRITE);
}

void console_write(const void *data, size_t bytes)
{
    const uintptr_t block[3] = {out, (uintptr_t)data, bytes};
    (void)call(SYS_WRITE, block);
}

void console_close(int status)
{
    (void)call(SYS_EXIT, (const void *)(uintptr_t)(status == 0 ? STOPPED_BY_EXIT : STOPPED_BY_ERROR));
}

int console_read(void *data, size_t bytes)
{
    while (bytes != 0) {
        const uintptr_t block[3] = {in, (uintptr_t)data, bytes};
        const size_t left = call(SYS_READ, block);
        if (left >= bytes) return 0;
        data = (unsigned char *)data + (bytes - left);
        bytes = left;
    }
    return 1;
}
