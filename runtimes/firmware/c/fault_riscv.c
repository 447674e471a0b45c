#include "console.h"

void fault(void);

void fault(void)
{
    console_text("FAULT: the core stopped at a trap\n");
    for (;;) {}
}
