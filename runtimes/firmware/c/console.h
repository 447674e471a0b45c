/* Text, and the link to a host: a UART or the debugger's files. */
#ifndef EDGEMEM_CONSOLE_H
#define EDGEMEM_CONSOLE_H

#include <stddef.h>
#include <stdint.h>

void console_open(void);
void console_write(const void *data, size_t bytes);
int console_read(void *data, size_t bytes); /* waits for all of them; 0 when the host has gone */

/* After main, with what it returns: 0 for success. The emulator or debugger ends with that; a board stands still. */
void console_close(int status);

void console_text(const char *text);
void console_unsigned(uint32_t value);
void console_float(float value); /* seven digits and an exponent, without a C library */

#endif
