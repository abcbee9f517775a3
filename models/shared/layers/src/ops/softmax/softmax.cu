// A group a row.

KERNEL(softmax_forward, READ(T, x, 0), WRITE(T, y, 1), VALUE(uint, width, 2), VALUE(uint, logarithm, 3)) {
    SUMS;
    const uint first = GROUP.x * width;
    float max = -INFINITY;
    for (uint i = THREAD; i < width; i += THREADS)
        max = larger(max, float(x[first + i]));
    max = group_max(max);
    // A row of -∞ alone has no exponentials.
    const float shift = max == -INFINITY ? 0 : max;
    float sum = 0;
    for (uint i = THREAD; i < width; i += THREADS)
        sum += MATH(exp)(float(x[first + i]) - shift);
    sum = group_sum(sum);
    const float total = sum == 0 ? 1 : sum, log_total = MATH(log)(total);
    for (uint i = THREAD; i < width; i += THREADS) {
        const float centred = float(x[first + i]) - shift;
        y[first + i] = T(logarithm ? centred - log_total : MATH(exp)(centred) / total);
    }
}

KERNEL(softmax_backward, READ(T, y, 0), READ(T, dy, 1), WRITE(T, dx, 2), VALUE(uint, width, 3),
       VALUE(uint, logarithm, 4)) {
    SUMS;
    const uint first = GROUP.x * width;
    float sum = 0;
    for (uint i = THREAD; i < width; i += THREADS)
        sum += float(dy[first + i]) * (logarithm ? 1 : float(y[first + i]));
    sum = group_sum(sum);
    for (uint i = THREAD; i < width; i += THREADS) {
        const float g = float(dy[first + i]), share = float(y[first + i]);
        dx[first + i] = T(logarithm ? g - MATH(exp)(share) * sum : share * (g - sum));
    }
}
