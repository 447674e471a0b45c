#include "console.h"

void console_text(const char *text)
{
    size_t length = 0;
    while (text[length] != '\0') ++length;
    console_write(text, length);
}

void console_unsigned(uint32_t value)
{
    char digits[10];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + value % 10u);
        value /= 10u;
    } while (value != 0u);
    console_write(digits + at, sizeof digits - at);
}

void console_float(float value)
{
    int exponent = 0;
    uint32_t scaled, digit;
    if (value != value) {
        console_text("nan");
        return;
    }
    if (value < 0.0f) {
        console_text("-");
        value = -value;
    }
    if (value > 3.4e38f) {
        console_text("inf");
        return;
    }
    if (value > 0.0f) {
        for (; value >= 10.0f; ++exponent) value *= 0.1f;
        for (; value < 1.0f; --exponent) value *= 10.0f;
    }
    scaled = (uint32_t)(value * 1000000.0f + 0.5f);
    console_unsigned(scaled / 1000000u);
    console_text(".");
    for (digit = 100000u; digit != 0u; digit /= 10u) console_unsigned(scaled / digit % 10u);
    console_text(exponent < 0 ? "e-" : "e+");
    console_unsigned((uint32_t)(exponent < 0 ? -exponent : exponent));
}
