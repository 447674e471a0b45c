/* A UART whose registers board.h names; set up by the table there. */
#include "board.h"
#include "console.h"

#if UART_WIDTH == 8
typedef volatile uint8_t reg;
#else
typedef volatile uint32_t reg;
#endif

#define REGISTER(address) (*(reg *)(uintptr_t)(address))

void console_open(void)
{
}

void console_write(const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (; bytes != 0; --bytes, ++p) {
#if !UART_TX_EVENT
        while (((REGISTER(UART_TX_STATUS) & UART_TX_MASK) != 0) != UART_TX_READY) {}
#endif
        REGISTER(UART_TX_DATA) = *p;
#if UART_TX_EVENT
        while (((REGISTER(UART_TX_STATUS) & UART_TX_MASK) != 0) != UART_TX_READY) {}
        REGISTER(UART_TX_STATUS) = 0;
#endif
    }
}

void console_close(int status)
{
    (void)status;
}

int console_read(void *data, size_t bytes)
{
    unsigned char *p = data;
    for (; bytes != 0; --bytes, ++p) {
        while (((REGISTER(UART_RX_STATUS) & UART_RX_MASK) != 0) != UART_RX_READY) {}
#if UART_RX_EVENT
        REGISTER(UART_RX_STATUS) = 0;
#endif
        *p = (unsigned char)REGISTER(UART_RX_DATA);
    }
    return 1;
}
