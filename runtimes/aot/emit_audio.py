"""The part of `edgemem-run` that takes sound: 16-bit mono PCM through the model's front end, chunk after chunk.

What it writes are the rows that `Stream.push_samples` and `flush` give: those of real frames, without the rows that
precede a model with look-ahead, and with those that follow the last sample.
"""

from __future__ import annotations

from edgemem.contract import Contract, InputFacts
from edgemem.runtimes.aot.emit_calls import Source, identifier, upper
from edgemem.runtimes.aot.emit_header import C_TYPES
from edgemem.samplerows import AnyFrontEnd, SampleRows
from edgemem.samplerows import front_end as described

BLOCK_SAMPLES = 320


def takes_sound(contract: Contract) -> bool:
    """Whether a program of the model can start from samples."""
    return contract.inputs[0].frontend is not None and contract.batch == 1


def front_end(port: InputFacts) -> AnyFrontEnd:
    assert port.frontend is not None
    return described(port.frontend)


def functions(source: Source) -> str:
    """C text: `run_sound`, which streams until standard input ends."""
    return "\n".join((rows_text(source.contract), step_text(source), loop_text(source)))


def rows_text(contract: Contract) -> str:
    """Where a stream is, and how rows of its outputs are written."""
    return f"""\
#define FRAMES {contract.chunk.frames}
#define AHEAD {contract.latency.look_ahead}

/* Real frames that the model has seen, rows that it made, and rows of real frames that were given. */
typedef struct {{
    size_t taken, rows, given;
}} place;

/* The rows `first` to `stop` of every output. */
static int give_rows(size_t first, size_t stop)
{{
    size_t i;
    for (i = 0; i < sizeof out_spans / sizeof out_spans[0]; ++i) {{
        const size_t bytes = out_spans[i].bytes / FRAMES;
        const unsigned char *rows = (const unsigned char *)out_room + out_spans[i].offset;
        if (!give(rows + first * bytes, (stop - first) * bytes)) return 0;
    }}
    return 1;
}}
"""


def step_text(source: Source) -> str:
    """One chunk through the model, and the rows that it makes known."""
    n, big, valid = source.name, upper(source.name), source.contract.valid_input
    set_valid = "(void)real;"
    if valid is not None:
        member = identifier(valid.name)
        set_valid = f"*({C_TYPES[valid.dtype]} *)(void *)(uintptr_t)inputs->{member} = ({C_TYPES[valid.dtype]})real;"
    return f"""\
/* One chunk, of which `real` frames are not padding; an exit code. */
static int sound_step(const {n}_inputs *inputs, const {n}_outputs *outputs, unsigned char *state, unsigned char *arena,
                      place *p, size_t real)
{{
    const size_t given = p->given, warm_up = given + AHEAD, first = warm_up > p->rows ? warm_up - p->rows : 0;
    int code;
    {set_valid}
    code = {n}_step(inputs, outputs, state, {big}_STATE_BYTES, arena, {big}_ARENA_BYTES);
    if (code != {big}_OK) {{
        fprintf(stderr, "{n}: error %d, see {n}.h\\n", code);
        return 1;
    }}
    p->taken += real;
    p->rows += FRAMES;
    if (AHEAD == 0) {{
        p->given = p->taken;
    }} else if (p->rows > AHEAD) {{
        p->given = p->taken < p->rows - AHEAD ? p->taken : p->rows - AHEAD;
    }}
    if (p->given == given) return 0;
    return give_rows(first, first + p->given - given) && fflush(stdout) == 0 ? 0 : 1;
}}
"""


def loop_text(source: Source) -> str:
    """Blocks of samples through the front end, chunks of its rows through the model, and the rest at the end."""
    n, big, contract = source.name, upper(source.name), source.contract
    made_by = "edgemem_rows" if isinstance(front_end(contract.inputs[0]), SampleRows) else "edgemem_frontend"
    features = contract.inputs[0]
    short = "0" if contract.valid_input is not None or contract.chunk.frames == 1 else "left != 0"
    return f"""\
static int run_sound(const {n}_inputs *inputs, const {n}_outputs *outputs, unsigned char *state, unsigned char *arena)
{{
    static float room[{big}_FRONTEND_FLOATS];
    static unsigned char bytes[2 * {BLOCK_SAMPLES}];
    static int16_t block[{BLOCK_SAMPLES}];
    float *rows = (float *)(void *)(uintptr_t)inputs->{identifier(features.name)};
    {made_by}_stream sound;
    place p = {{0, 0, 0}};
    size_t left = 0, count;
    int code = 0;
    {made_by}_reset(&{n}_frontend, &sound, room);
    while ((count = fread(bytes, 1, sizeof bytes, stdin)) > 0) {{
        const int16_t *samples = block;
        size_t i;
        if (count % 2 != 0) {{
            fprintf(stderr, "{n}: 16-bit samples were wanted, an odd number of bytes came\\n");
            return 2;
        }}
        count /= 2;
        for (i = 0; i < count; ++i) {{
            const int value = bytes[2 * i] + 256 * bytes[2 * i + 1];
            block[i] = (int16_t)(value < 32768 ? value : value - 65536);
        }}
        while ({made_by}_push(&{n}_frontend, &sound, &samples, &count, rows + left * {big}_FRONTEND_WIDTH)) {{
            if (++left < FRAMES) continue;
            left = 0;
            code = sound_step(inputs, outputs, state, arena, &p, FRAMES);
            if (code != 0) return code;
        }}
    }}
    if ({short}) {{
        fprintf(stderr, "{n}: whole chunks of %d frames were wanted, %d are left\\n", FRAMES, (int)left);
        return 1;
    }}
    while (code == 0 && (left != 0 || p.given < p.taken)) {{
        memset(rows + left * {big}_FRONTEND_WIDTH, 0, (FRAMES - left) * {big}_FRONTEND_WIDTH * sizeof *rows);
        code = sound_step(inputs, outputs, state, arena, &p, left);
        left = 0;
    }}
    return code;
}}
"""
