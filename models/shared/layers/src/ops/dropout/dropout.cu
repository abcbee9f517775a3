// y = residual + dropout(x). A thread draws a block of four words, which decide on four elements, 16 apart.

KERNEL(dropout, READ(T, x, 0), READ(T, residual, 1), WRITE(T, y, 2), VALUE(uint, n, 3), VALUE(uint, period, 4),
       VALUE(uint, threshold, 5), VALUE(float, scale, 6), VALUE(uint, step0, 7), VALUE(uint, step1, 8),
       VALUE(uint, key0, 9), VALUE(uint, key1, 10)) {
    const uint block = GROUP.x * THREADS + THREAD;
    // Without dropout nothing lies below the threshold.
    Words words = {{0, 0, 0, 0}};
    if (threshold > 0)
        words = philox(block, step0, step1, key0, key1);
    for (uint w = 0; w < 4; w++) {
        const uint e = block / 16 * 64 + 16 * w + block % 16;
        if (e >= n)
            return;
        const float kept = words.w[w] < threshold ? 0 : float(x[e]) * scale;
        // A residual may be one for several parts of x.
        y[e] = T(period > 0 ? float(residual[e < period ? e : e % period]) + kept : kept);
    }
}
