"""The step of a `w8a8` file in integers: no float between what comes in and what goes out, but for wide states.

    values      what a tensor of the ONNX graph is: integers in a scale, a constant, a sum that waits for its rounding
    views       elements of buffers as loops
    lower       ONNX nodes -> operations on integer buffers
    operators   what becomes of each operator: its kernel in NumPy and as C, its rounding, its rule
    operation   one call of a step
    powers      powers of two, for softmax and the exponential
    factors     real factors as whole numbers and shifts
    reference   the NumPy side as a program: what every board has to give, byte for byte
    generate    the C side as source text for the memory plan and the driver of `aot`

The C functions that do the work lie in the folder `c`: portable, with the DSP extension (SMLAD), and with Helium (MVE).
"""
