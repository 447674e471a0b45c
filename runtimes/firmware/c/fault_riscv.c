#include "console.h"

void fault(void);

void fault(void)
{
    console_text("FAULT: the core stopped at a trap\n");
    console_close(1);
    for (;;) {}
}
