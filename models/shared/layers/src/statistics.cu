// Of each row of x, or of x - minus: the largest |v|, Σ (v / largest)², and how many elements are below `limit`, are not
// zero, and are not finite. Divided, so that no square leaves the range of float.
KERNEL(row_statistics, READ(T, x, 0), READ(T, minus, 1), WRITE(float, sums, 2), VALUE(uint, n, 3),
       VALUE(uint, width, 4), VALUE(uint, differences, 5), VALUE(float, limit, 6)) {
    SUMS;
    const uint first = GROUP.x * width, end = n - first < width ? n : first + width;
    float largest = 0;
    for (uint i = first + THREAD; i < end; i += THREADS) {
        const float v = float(x[i]) - (differences ? float(minus[i]) : 0);
        largest = larger(largest, v < 0 ? -v : v);
    }
    largest = group_max(largest);
    const float unit = largest > 0 && isfinite(largest) ? largest : 1;
    float squares = 0, small = 0, nonzero = 0, not_finite = 0;
    for (uint i = first + THREAD; i < end; i += THREADS) {
        const float v = float(x[i]) - (differences ? float(minus[i]) : 0);
        squares += v / unit * (v / unit);
        small += v < limit && v > -limit;
        nonzero += v != 0;
        not_finite += !isfinite(v);
    }
    squares = group_sum(squares);
    small = group_sum(small);
    nonzero = group_sum(nonzero);
    not_finite = group_sum(not_finite);
    if (THREAD == 0) {
        sums[5 * GROUP.x] = largest;
        sums[5 * GROUP.x + 1] = squares;
        sums[5 * GROUP.x + 2] = small;
        sums[5 * GROUP.x + 3] = nonzero;
        sums[5 * GROUP.x + 4] = not_finite;
    }
}
