/* Detections of a keyword spotter are those of edgemem.tasks.kws.Detector: the posterior of a keyword, averaged over
 * the last rows, is the highest and at least a threshold, some time after the last detection; it counts again once it
 * has been below half the threshold. Of other models: the label that leads, whenever it changes.
 */
#include "hearing.h"

#include "console.h"
#include "sound_model.h"

#include <string.h>

static const char *const labels[SOUND_OUTPUTS] = {SOUND_LABELS};
static const unsigned char quiet[SOUND_OUTPUTS] = {SOUND_QUIET};
static float recent[SOUND_SMOOTHING][SOUND_OUTPUTS]; /* posteriors, a ring of rows */
static unsigned char armed[SOUND_OUTPUTS];
static uint32_t seen, last, heard, leads;

/* e^x of x <= 0: 2^n 2^f with f in [-1/2, 1/2], the latter by six terms. */
static float power_of_e(float x)
{
    const float t = x * 1.44269504f;
    const int32_t n = (int32_t)(t - 0.5f);
    const float f = (t - (float)n) * 0.693147181f;
    const float p = 1.0f + f * (1.0f + f * (0.5f + f * (1.0f / 6.0f + f * (1.0f / 24.0f + f * (1.0f / 120.0f)))));
    uint32_t bits;
    float scale;
    if (n < -126) return 0.0f;
    bits = (uint32_t)(n + 127) << 23;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static void softmax(const float *logits, float *posteriors)
{
    float most = logits[0], sum = 0.0f;
    uint32_t i;
    for (i = 1; i < SOUND_OUTPUTS; ++i) most = logits[i] > most ? logits[i] : most;
    for (i = 0; i < SOUND_OUTPUTS; ++i) sum += posteriors[i] = power_of_e(logits[i] - most);
    for (i = 0; i < SOUND_OUTPUTS; ++i) posteriors[i] /= sum;
}

static void digits(uint32_t value)
{
    console_unsigned(value / 10u);
    console_unsigned(value % 10u);
}

/* `seconds.hundredths s label score` */
static void say(uint32_t row, uint32_t label, float score)
{
    const uint32_t samples = row * SOUND_HOP + SOUND_SPAN;
    console_unsigned(samples / SOUND_RATE);
    console_text(".");
    digits(samples % SOUND_RATE * 100u / SOUND_RATE);
    console_text(" s ");
    console_text(labels[label]);
    console_text(score < 0.995f ? " 0." : " 1.");
    digits((uint32_t)(score * 100.0f + 0.5f) % 100u);
    console_text("\n");
}

void hearing_open(void)
{
    uint32_t i;
    for (i = 0; i < SOUND_OUTPUTS; ++i) armed[i] = !quiet[i];
    seen = heard = 0;
    leads = SOUND_OUTPUTS;
}

static void detect(uint32_t row)
{
    const uint32_t rows = seen < SOUND_SMOOTHING ? seen : SOUND_SMOOTHING;
    uint32_t i, j, best = 0;
    float mean[SOUND_OUTPUTS];
    for (i = 0; i < SOUND_OUTPUTS; ++i) {
        float sum = 0.0f;
        for (j = 0; j < rows; ++j) sum += recent[j][i];
        mean[i] = sum / (float)rows;
        if (mean[i] > mean[best]) best = i;
        if (mean[i] < SOUND_THRESHOLD / 2 && !quiet[i]) armed[i] = 1;
    }
    if (!armed[best] || mean[best] < SOUND_THRESHOLD || (heard && row - last < SOUND_REFRACTORY)) return;
    armed[best] = 0;
    heard = 1;
    last = row;
    say(row, best, mean[best]);
}

static void lead(const float *posteriors, uint32_t row)
{
    uint32_t i, best = 0;
    for (i = 1; i < SOUND_OUTPUTS; ++i) best = posteriors[i] > posteriors[best] ? i : best;
    if (best == leads) return;
    leads = best;
    if (!quiet[best]) say(row, best, posteriors[best]);
}

void hearing_row(const float *logits, uint32_t row)
{
    float *const posteriors = recent[seen++ % SOUND_SMOOTHING];
    softmax(logits, posteriors);
    if (SOUND_DETECTS) detect(row);
    else lead(posteriors, row);
}
