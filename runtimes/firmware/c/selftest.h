#ifndef EDGEMEM_SELFTEST_H
#define EDGEMEM_SELFTEST_H

/* Runs the test vectors and writes `PASS`, or `FAIL index expected got`, to the console; 1 if all is well. */
int selftest(void);

#endif
