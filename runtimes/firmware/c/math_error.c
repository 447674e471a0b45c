/* Where the math library of newlib notes an error: one number, not the kilobyte of state that its C library keeps. */
int *__errno(void);

static int noted;

int *__errno(void)
{
    return &noted;
}
