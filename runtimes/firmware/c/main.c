/* The firmware: says what it is, proves that it computes what was compiled, goes on from the newest whole snapshot in
 * flash if there is one, and answers a host.
 *
 * A product of your own keeps start-up, linker script, edgemem_model.c and the NAME_* files, and calls edgemem_reset() once and
 * edgemem_step() for every chunk; edgemem_inputs and edgemem_outputs say where the numbers go. snapshot_save() keeps the
 * state where the next start finds it, where there is flash for it (SNAPSHOTS in board.h).
 */
#include "board.h"
#include "console.h"
#include "counter.h"
#include "edgemem_model.h"
#include "selftest.h"
#include "serve.h"
#include "snapshot.h"
#include "start.h"

int main(void)
{
    console_open();
    counter_start();
    console_text("edgemem ");
    console_text(edgemem_model_name);
    console_text(" on " BOARD_NAME "\n");
    if (!selftest()) {
        console_text("stopped\n");
        return 1;
    }
#if SNAPSHOTS
    console_text(snapshot_load() == SNAPSHOT_OK ? "state from flash\n" : "state from the start\n");
#else
    console_text("state from the start\n");
#endif
    console_text("ready\n");
    serve();
    console_text("stopped\n");
    return 0;
}
